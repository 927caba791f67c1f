"use strict";
// Drawing of the page's data: tiles of sheets, maps as bytes, neighbours. Independent of the page's state.

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

function shaped(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

const pictures = new Map();
function pictureOf(source) {
  if (!pictures.has(source)) {
    const picture = new Image();
    picture.src = source;
    pictures.set(source, picture.decode().then(() => picture));
  }
  return pictures.get(source);
}

function canvasOf(width, height, label) {
  return element("canvas", label ? { width, height, role: "img", "aria-label": label } : { width, height, "aria-hidden": "true" });
}

// A part of a sheet's tile, in pixels of the tile.
async function drawPart(canvas, sheet, index, [left, top, width, height]) {
  const picture = await pictureOf(sheet.source);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  const x = (index % sheet.columns) * sheet.width + left, y = Math.floor(index / sheet.columns) * sheet.height + top;
  context.drawImage(picture, x, y, width, height, 0, 0, canvas.width, canvas.height);
}

function tileCanvas(sheet, index, label, [width, height] = [sheet.width, sheet.height]) {
  const canvas = canvasOf(width, height, label);
  drawPart(canvas, sheet, index, [0, 0, width, height]);
  return canvas;
}

// A box of the image, [left, top, right, bottom] in image pixels, in the pixels of the tile that shows the image.
function inTile(box, sheet, image) {
  const across = sheet.width / image[0], down = sheet.height / image[1];
  return [box[0] * across, box[1] * down, (box[2] - box[0]) * across, (box[3] - box[1]) * down];
}

function cropCanvas(sheet, index, box, image, label) {
  const part = inTile(box, sheet, image);
  const canvas = canvasOf(Math.max(1, Math.round(part[2])), Math.max(1, Math.round(part[3])), label);
  drawPart(canvas, sheet, index, part);
  return canvas;
}

function enlargement(sheet) {
  return Math.max(1, Math.ceil(208 / Math.max(sheet.width, sheet.height)));
}

function outline(context, box, sheet, image, factor) {
  const [x, y, width, height] = inTile(box, sheet, image).map((value) => value * factor);
  for (const [line, colour] of [[4, "#000"], [2, "#00d5ff"]]) {
    context.lineWidth = line;
    context.strokeStyle = colour;
    context.strokeRect(x + 1.5, y + 1.5, Math.max(1, width - 3), Math.max(1, height - 3));
  }
}

// A tile, enlarged, with a box around a part of it.
function boxedCanvas(sheet, index, box, image, label) {
  const factor = enlargement(sheet), canvas = canvasOf(sheet.width * factor, sheet.height * factor, label);
  drawPart(canvas, sheet, index, [0, 0, sheet.width, sheet.height]).then(() =>
    outline(canvas.getContext("2d"), box, sheet, image, factor));
  return canvas;
}

function colouredMap(bytes, [rows, columns], colours) {
  const canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d"), drawn = context.createImageData(columns, rows);
  bytes.forEach((value, index) => {
    drawn.data.set(colours.subarray(3 * value, 3 * value + 3), 4 * index);
    drawn.data[4 * index + 3] = 255;
  });
  context.putImageData(drawn, 0, 0);
  return canvas;
}

// A map over the image in grey, enlarged smoothly, with the receptive field of its strongest position.
function overlayCanvas(sheet, index, map, size, colours, label, box = null, image = null) {
  const factor = enlargement(sheet), canvas = canvasOf(sheet.width * factor, sheet.height * factor, label);
  drawPart(canvas, sheet, index, [0, 0, sheet.width, sheet.height]).then(() => {
    const context = canvas.getContext("2d");
    context.globalCompositeOperation = "saturation"; // of grey: none
    context.fillStyle = "#808080";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.globalCompositeOperation = "source-over";
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.globalAlpha = 0.6;
    context.drawImage(colouredMap(bytesOf(map), size, colours), 0, 0, canvas.width, canvas.height);
    context.globalAlpha = 1;
    if (box) outline(context, box, sheet, image, factor);
  });
  return canvas;
}

// Values within 0 to 255 as cells, columns in the order given.
function drawHeat(canvas, bytes, rows, columns, order, colours) {
  const whole = new Uint8Array(rows * columns);
  for (let row = 0; row < rows; row++) order.forEach((column, place) => { whole[row * columns + place] = bytes[row * columns + column]; });
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(colouredMap(whole, [rows, columns], colours), 0, 0, canvas.width, canvas.height);
}

// Edges into a kernel on the left, those from it on the right; each is {label, href, share, strength}. Width in pixels.
function neighbourhood(middle, incoming, outgoing, width) {
  const row = 30, head = 26, height = head + row * Math.max(1, incoming.length, outgoing.length);
  const half = width < 520 ? 18 : 34, side = width < 520 ? (width - 2 * half - 52) / 2 : Math.min(230, (width - 110) / 2.6), centre = width / 2, y = head + (height - head) / 2;
  const svg = shaped("svg", { viewBox: `0 0 ${width} ${height}`, class: "links", role: "group", "aria-label": `Neighbours of ${middle}` });
  const most = Math.max(...[...incoming, ...outgoing].map((edge) => edge.strength), 1e-9);
  const letters = Math.max(8, Math.floor(side / 8.2));
  const text = (content, attributes) => shaped("text", attributes, content);
  const draw = (edges, left) => {
    const start = head + (height - head - row * edges.length) / 2;
    edges.forEach((edge, index) => {
      const at = start + row * (index + 0.5), x = left ? side : width - side, box = half;
      const end = left ? centre - box : centre + box, bend = (x + end) / 2;
      svg.append(shaped("path", { d: `M${x} ${at} C${bend} ${at} ${bend} ${y} ${end} ${y}`, class: edge.share < 0 ? "minus" : "for",
        "stroke-width": (0.8 + 7 * edge.strength / most).toFixed(2), "stroke-opacity": 0.75 }));
      const strength = ` ${(100 * edge.strength).toFixed(0)}%`, room = letters - strength.length;
      const short = edge.label.length > room ? `…${edge.label.slice(edge.label.length - room + 1)}` : edge.label;
      const link = shaped("a", { href: edge.href, "aria-label": `${edge.label}, ${left ? "into this kernel" : "from this kernel"},${strength} of its reader's inputs` },
        shaped("title", {}, `${edge.label}: strength${strength}, mean share ${(100 * edge.share).toFixed(1)}%`),
        text(short + strength, { x: left ? x - 6 : x + 6, y: at + 4, "text-anchor": left ? "end" : "start" }));
      svg.append(link);
    });
  };
  svg.append(text("inputs", { x: side - 6, y: 14, "text-anchor": "end", class: "head-text" }), text("outputs", { x: width - side + 6, y: 14, class: "head-text" }));
  draw(incoming, true);
  draw(outgoing, false);
  const number = middle.slice(middle.lastIndexOf(" ") + 1);
  svg.append(shaped("rect", { x: centre - half, y: y - 15, width: 2 * half, height: 30, rx: 8 }), text(number, { x: centre, y: y + 5, class: "middle" }));
  return svg;
}
