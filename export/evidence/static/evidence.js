"use strict";
// The page: decisions, kernels with their cards, classes. All data is inserted as text, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const colours = { inferno: bytesOf(data.colours.inferno), viridis: bytesOf(data.colours.viridis) };
const byId = (id) => document.getElementById(id);
const PAGE = 24;
const siteNumber = new Map(data.sites.map((site, index) => [site.name, index]));
data.sites.forEach((site, index) => { if (site.layer && !siteNumber.has(site.layer)) siteNumber.set(site.layer, index); });

// Facts of a kernel

function figure(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : String(Number(value.toPrecision(3)));
}
const percent = (share) => `${(100 * share).toFixed(share !== 0 && Math.abs(share) < 0.1 ? 1 : 0)}%`;
const nameOf = (site, kernel) => (site.isClasses && data.classes[kernel] !== undefined ? `${site.name} · ${data.classes[kernel]}` : `${site.name} · ${kernel}`);
const addressOf = (site, kernel) => `#kernel-${encodeURIComponent(site.name)}-${kernel}`;

const ranks = new Map();
function rankOf(site, method, kernel) {
  const key = `${method} ${site.name}`, values = site.scores[method];
  if (!values) return null;
  if (!ranks.has(key)) {
    const places = [];
    values.map((value, index) => [value, index]).sort((a, b) => b[0] - a[0] || a[1] - b[1]).forEach(([, index], place) => { places[index] = place + 1; });
    ranks.set(key, places);
  }
  return ranks.get(key)[kernel];
}

function verdictOf(site, kernel) {
  if (!site.layer) {
    const source = site.fedBy[kernel], feeding = source && data.sites[siteNumber.get(source[0])];
    const found = feeding && verdictOf(feeding, source[1]);
    return found ? { ...found, why: `Its channel comes from ${source[0]} · ${source[1]}: ${found.why}` } : null;
  }
  if (!site.verdicts) return null;
  const { stays, why, scores, by } = site.verdicts;
  return { stays: stays[kernel] === 1, why: data.whys[why[kernel]], score: scores[kernel], by };
}

function strongestClass(site, kernel) {
  if (site.strongest) return site.strongest[kernel].length ? site.strongest[kernel][0][0] : null;
  const own = site.profile[kernel], most = Math.max(...own);
  return own.every((value) => value === most) ? null : own.indexOf(most);
}

function badge(site, kernel) {
  const verdict = verdictOf(site, kernel);
  if (!verdict) return element("span", { class: "badge none" }, data.planned ? "not in the plan" : "no plan");
  return element("span", { class: verdict.stays ? "badge" : "badge goes" }, verdict.stays ? "stays" : "goes");
}

function patchCanvas(site, kernel, place, label) {
  const [image, ...box] = site.patches[kernel][place];
  if (!site.sheet) return cropCanvas(data.atlas, image, box.slice(0, 4), data.atlas.image, label);
  const index = site.sheet.starts[kernel] + place;
  return tileCanvas(site.sheet, index, label, site.sheet.sizes[index]);
}

// Decisions

const opened = { picture: -1 };

function fillPictures() {
  const strip = byId("pictures"), wanted = byId("picture-class").value, wrongOnly = byId("only-wrong").checked;
  const shown = data.pictures.map((picture, index) => [picture, index]).filter(([picture]) =>
    (!wanted || picture.predicted === wanted || picture.label === wanted) && (!wrongOnly || mistaken(picture)));
  strip.replaceChildren(...shown.map(([picture, index]) =>
    element("button", { type: "button", "aria-pressed": String(index === opened.picture), on: { click: () => showPicture(index) } },
      tileCanvas(picture.sheet, 0, ""), element("span", {}, `${picture.predicted} ${percent(picture.probability)}`),
      mistaken(picture) ? element("div", { class: "wrong" }, `is ${picture.label}`) : "")));
  if (!data.pictures.length) strip.replaceWith(element("p", { class: "note" }, data.missing.pictures || "No image was explained, since none was requested."));
  else if (!shown.length) strip.append(element("p", { class: "soft" }, "No image matches the filter."));
  else if (!shown.some(([, index]) => index === opened.picture)) showPicture(shown[0][1]);
}
const mistaken = (picture) => Boolean(picture.label) && picture.label !== picture.predicted;

function showPicture(index) {
  opened.picture = index;
  const picture = data.pictures[index];
  fillPressed();
  const facts = [
    element("p", {}, `Predicted ${picture.predicted} with probability ${percent(picture.probability)}`, picture.label ? (mistaken(picture) ? element("span", { class: "wrong" }, `; the label is ${picture.label}.`) : "; the label is the same.") : "."),
    ...(picture.occlusions.length ? [element("p", { class: "soft small" }, "Occlusion: strong pixels of a kernel were covered with the mean colour, and the network was run again:"),
      element("ul", { class: "soft small" }, picture.occlusions.map((one) => element("li", {}, `${one.why}: probability of ${one.class} ${percent(one.before)} → ${percent(one.after)}${one.predicted === one.class ? "" : `, now ${one.predicted}`}`)))] : []),
  ];
  const branch = branchOf(picture, picture.evidence);
  byId("tree").replaceChildren(
    element("div", { class: "decision" },
      element("div", { class: "views" },
        view(tileCanvas(picture.sheet, 0, `Image ${picture.name}`), "image"), view(tileCanvas(picture.sheet, 1, `Guided gradient of ${picture.decision}`), "guided gradient")),
      element("div", { class: "text" }, element("h3", { class: "name" }, `${picture.name}: ${picture.decision} (${figure(picture.value)})`), facts,
        element("button", { type: "button", on: { click: () => expandAll(branch) } }, "Expand all"))),
    branch);
}
function fillPressed() {
  const buttons = [...byId("pictures").querySelectorAll("button")], picture = data.pictures[opened.picture];
  buttons.forEach((button) => button.setAttribute("aria-pressed", "false"));
  const wanted = byId("picture-class").value, wrongOnly = byId("only-wrong").checked;
  const shown = data.pictures.filter((one) => (!wanted || one.predicted === wanted || one.label === wanted) && (!wrongOnly || mistaken(one)));
  const place = shown.indexOf(picture);
  if (place >= 0 && buttons[place]) buttons[place].setAttribute("aria-pressed", "true");
}
const view = (canvas, caption) => element("figure", {}, canvas, element("figcaption", {}, caption));

function branchOf(picture, nodes) {
  if (!nodes.length) return element("p", { class: "soft" }, "No kernel supports this decision: none has a positive contribution.");
  return element("ul", { class: "branch" }, nodes.map((node) => element("li", {}, nodeOf(picture, node))));
}

function nodeOf(picture, node) {
  const site = data.sites[siteNumber.get(node.site)], name = `${node.layer} · ${node.kernel}`, image = picture.image;
  const box = element("div", { class: "node" });
  const title = `${name}: ${percent(node.share)}`;
  const head = node.support.length
    ? element("button", { type: "button", class: "expand", "aria-expanded": "false", on: { click: () => toggle(box, picture, node) } }, title)
    : element("span", { class: "leaf" }, title);
  const merged = node.merged.length ? `, nearly the same map as ${node.merged.slice(0, 4).join(", ")}${node.merged.length > 4 ? ", …" : ""}` : "";
  const bar = element("i", {});
  bar.style.width = `${Math.min(100, 100 * Math.abs(node.share)).toFixed(1)}%`;
  box.append(
    element("header", {}, head, element("span", { class: node.share < 0 ? "share minus" : "share" }, bar),
      site ? [badge(site, node.kernel), element("a", { href: addressOf(site, node.kernel) }, "card")] : ""),
    element("div", { class: "views" },
      view(overlayCanvas(picture.sheet, 0, node.map, node.size, colours.inferno, `Activation map of ${name} over the image`, node.box, image), "activation map"),
      view(cropCanvas(picture.sheet, 0, node.box, image, `Receptive field of the strongest position of ${name}`), `${node.box[2] - node.box[0]} × ${node.box[3] - node.box[1]} pixels`),
      view(tileCanvas(picture.sheet, node.tile, `Guided gradient of ${name} at this position`, node.tileSize), "guided gradient")),
    element("p", { class: "soft small" }, `activation ${figure(node.value)} at row ${node.place[0]}, column ${node.place[1]}; importance ${percent(node.importance)} of the decision${merged}`));
  return box;
}

function toggle(box, picture, node) {
  const button = box.querySelector(".expand"), list = box.parentElement;
  if (button.getAttribute("aria-expanded") === "true") {
    list.querySelector(":scope > ul").remove();
    button.setAttribute("aria-expanded", "false");
  } else {
    list.append(branchOf(picture, node.support));
    button.setAttribute("aria-expanded", "true");
  }
}
function expandAll(branch) {
  for (let closed; (closed = [...branch.querySelectorAll(".expand[aria-expanded=false]")]).length;) closed.forEach((button) => button.click());
}

// The list of kernels

const list = { found: [], shown: 0 };

function fillFilters() {
  const option = (value, text) => element("option", { value }, text);
  const classes = data.classes.map((name, index) => option(String(index), name));
  byId("layer").append(option("", "all layers"), ...data.sites.map((site, index) => option(String(index), `${site.name} (${site.kernels}${site.layer ? "" : ", a sum"})`)));
  byId("class").append(option("", "any"), ...classes);
  byId("verdict").append(option("", "all"), option("stays", "stays"), option("goes", "goes"));
  byId("order").append(option("", "network order"), option("high", "highest score first"), option("low", "lowest score first"));
  byId("picture-class").append(option("", "all"), ...data.classes.filter((name) => data.pictures.some((one) => one.predicted === name || one.label === name)).map((name) => option(name, name)));
  if (!data.planned) byId("verdict").disabled = true;
}

function matching() {
  const layer = byId("layer").value, label = byId("class").value, verdict = byId("verdict").value, order = byId("order").value;
  const words = byId("search").value.trim().toLowerCase().replace(/[\s·:#-]+(\d+)$/, " $1").split(/\s+/).filter(Boolean);
  const named = words.filter((word) => !/^\d+$/.test(word)), numbers = words.filter((word) => /^\d+$/.test(word)).map(Number);
  const found = [];
  data.sites.forEach((site, index) => {
    if (layer ? String(index) !== layer : (!site.layer || site.isClasses) && !named.length) return;
    if (!named.every((word) => site.name.toLowerCase().includes(word))) return;
    for (let kernel = 0; kernel < site.kernels; kernel++) {
      if (numbers.length && !numbers.every((number) => number === kernel)) continue;
      if (label && String(strongestClass(site, kernel)) !== label) continue;
      if (verdict && (verdictOf(site, kernel) || {}).stays !== (verdict === "stays")) continue;
      found.push([site, kernel]);
    }
  });
  if (order) {
    const share = ([site, kernel]) => { const rank = rankOf(site, 0, kernel); return rank === null ? 2 : (rank - 0.5) / site.kernels; };
    found.sort((a, b) => (order === "high" ? share(a) - share(b) : (share(b) > 1 ? -1 : share(b)) - (share(a) > 1 ? -1 : share(a))));
  }
  return found;
}

function fillList() {
  list.found = matching();
  list.shown = 0;
  byId("list").replaceChildren();
  showMore();
}
function showMore() {
  const next = list.found.slice(list.shown, list.shown + PAGE);
  byId("list").append(...next.map(([site, kernel]) => kernelTile(site, kernel)));
  list.shown += next.length;
  const total = list.found.length;
  byId("found").textContent = total ? `${total} kernel${total === 1 ? "" : "s"}${list.shown < total ? `, ${list.shown} shown` : ""}` : data.sites.length ? "No kernel matches the search." : "";
  byId("more").hidden = list.shown >= total;
}

function kernelTile(site, kernel) {
  const patches = site.patches[kernel], label = strongestClass(site, kernel), rank = rankOf(site, 0, kernel);
  const blank = (text) => element("div", { class: "blank" }, text);
  return element("button", { type: "button", class: "tile", on: { click: () => { location.hash = addressOf(site, kernel); } } },
    patches === null ? blank("patches not shown") : patches.length ? patchCanvas(site, kernel, 0, "") : blank("never above zero"),
    element("div", {}, element("strong", {}, nameOf(site, kernel)), element("div", {}, badge(site, kernel)),
      rank === null || !data.methods.length ? "" : element("span", {}, `${data.methods[0].name}: ${rank} of ${site.kernels} (${figure(site.scores[0][kernel])})`),
      label === null ? "" : element("span", {}, `strongest on ${data.classes[label]}`)));
}

// The card of a kernel

function openCard(site, kernel) {
  const verdict = verdictOf(site, kernel), body = byId("card-body"), step = (by) => site.kernels > 1 && kernel + by >= 0 && kernel + by < site.kernels
    ? element("a", { href: addressOf(site, kernel + by), "aria-label": by < 0 ? "Previous kernel" : "Next kernel" }, by < 0 ? `← ${kernel - 1}` : `${kernel + 1} →`) : "";
  const reason = verdict ? `${verdict.why}.` : data.planned ? "The plan does not include it." : "There is no plan yet; run `secateur plan` or `secateur prune-and-export` for a verdict.";
  const unit = verdict && verdict.score !== null && verdict.score !== undefined ? `  Score of its unit by ${verdict.by}: ${figure(verdict.score)}, the sum over its coupled layers of scores normalised to mean 1.` : "";
  body.replaceChildren(
    element("div", { class: "head" }, element("h2", { id: "card-title", tabindex: "-1" }, nameOf(site, kernel)), badge(site, kernel), step(-1), step(1),
      element("button", { type: "button", on: { click: () => byId("card").close() } }, "Close")),
    element("p", { class: "soft name" }, reason + unit),
    element("p", { class: "soft small" }, `${kindOf(site)}; map of ${site.map[0]} × ${site.map[1]}; mean activation ${figure(site.average[kernel])}, above zero at ${percent(site.active[kernel])} of the positions of ${data.images} calibration images.`),
    element("div", { class: "halves" },
      element("div", {}, element("h3", {}, "Scores"), scoresOf(site, kernel, verdict), element("h3", {}, "Classes"), profileOf(site, kernel)),
      element("div", {}, element("h3", {}, "Strongest patches"), patchesOf(site, kernel))),
    element("h3", {}, "Neighbours in the attribution graphs"));
  const card = byId("card");
  if (!card.open) card.showModal();
  body.append(neighboursOf(site, kernel, body.clientWidth - 44));
  card.scrollTop = 0;
  byId("card-title").focus();
}
function kindOf(site) {
  if (site.isClasses) return "The head: its kernels are the classes";
  return { convolution: "Convolution", linear: "Linear layer", join: "Sum of branches, without weights", gate: "Product of branches, without weights" }[site.kind] || site.kind;
}

function scoresOf(site, kernel, verdict) {
  const rows = data.methods.map((method, index) => [method, index]).filter(([, index]) => site.scores[index]);
  if (!rows.length) return element("p", { class: "soft" }, site.layer ? "No method scored this layer." : "Sums have no scores; the layers that feed them do.");
  const decided = verdict && site.verdicts ? site.verdicts.by : "";
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Scores" }, element("table", {},
    element("thead", {}, element("tr", {}, ["method", "score", "rank", "unit"].map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, rows.map(([method, index]) => {
      const decides = method.role === "the ranking" && method.name === decided;
      return element("tr", { class: method.role === "the ranking" ? "chosen" : "" },
        element("th", { scope: "row" }, method.name, decides ? " (decided)" : method.role === "in the ranking" ? " (in the ranking)" : ""),
        element("td", {}, figure(site.scores[index][kernel])), element("td", {}, `${rankOf(site, index, kernel)} of ${site.kernels}`), element("td", {}, method.unit));
    }))));
}

function profileOf(site, kernel) {
  const rows = site.strongest ? site.strongest[kernel] : site.profile[kernel].map((value, index) => [index, value]);
  const most = Math.max(...rows.map(([, value]) => Math.abs(value)), 1e-12), signed = rows.some(([, value]) => value < 0);
  const note = `Mean activation over ${data.labelled ? "the images of each class" : "the images predicted as each class"}${site.strongest ? `; the ${rows.length} strongest of ${data.classes.length} classes` : ""}.`;
  return element("div", {}, element("dl", { class: "profile" }, rows.flatMap(([label, value]) => {
    const bar = element("i", { class: value < 0 ? "minus" : "" }), share = (signed ? 50 : 100) * Math.abs(value) / most;
    bar.style.width = `${share}%`;
    bar.style.left = signed ? `${value < 0 ? 50 - share : 50}%` : "0";
    return [element("dt", {}, data.classes[label] === undefined ? `class ${label}` : data.classes[label]), element("dd", { class: "track" }, bar), element("dd", {}, figure(value))];
  })), element("p", { class: "soft small" }, note));
}

function patchesOf(site, kernel) {
  const patches = site.patches[kernel];
  if (patches === null) return element("p", { class: "note" }, `This page shows patches of ${data.patched} kernels per layer, those with the highest and the lowest scores, and of kernels in evidence trees. Use --evidence-kernels to show more.`);
  if (!patches.length) return element("p", { class: "soft" }, "It is never above zero on the calibration images.");
  return element("div", {}, element("ul", { class: "patches" }, patches.map(([image, left, top, right, bottom, value], place) => {
    const label = data.classes[data.atlas.labels[image]], box = [left, top, right, bottom];
    return element("li", {}, element("div", { class: "pair" }, patchCanvas(site, kernel, place, `Patch ${place + 1}, of ${label}`), boxedCanvas(data.atlas, image, box, data.atlas.image, `Its image`)),
      element("span", { class: "soft small" }, `${label}, ${figure(value)}`));
  })), element("p", { class: "soft small" }, `The receptive field of the strongest position, at most one per calibration image, with the activation there.`));
}

function neighboursOf(site, kernel, width) {
  if (!data.neighbours) return element("p", { class: "note" }, data.missing.neighbours || "This network has no attribution graphs.");
  const edgesOf = (edges) => (edges ? edges[kernel] : []).map(([index, other, share, strength]) => ({
    label: nameOf(data.sites[index], other), href: addressOf(data.sites[index], other), share, strength }));
  const incoming = edgesOf(site.in), outgoing = edgesOf(site.out), unlinked = data.neighbours.unlinked[site.name];
  const notes = [];
  if (unlinked) notes.push(`Its inputs have no Shapley values in closed form: ${unlinked} mixes channels in between.`);
  else if (!site.in) notes.push("Its input is the image.");
  notes.push(`Mean absolute Shapley values between kernels over ${data.neighbours.images} calibration images, as shares of all inputs of the reading kernel; orange if the signed mean is negative. Strongest first; a link opens the neighbour's card.`);
  return element("div", {}, incoming.length || outgoing.length ? neighbourhood(`${site.name} ${kernel}`, incoming, outgoing, Math.max(300, width)) : "", element("p", { class: "soft small" }, notes.join(" ")));
}

// Addresses

function followAddress() {
  const address = decodeAddress(location.hash.slice(1)), kernel = /^kernel-([^]+)-(\d+)$/.exec(address), layer = /^layer-([^]+)$/.exec(address);
  if (kernel) {
    const site = data.sites[siteNumber.get(kernel[1])];
    if (site && Number(kernel[2]) < site.kernels) return openCard(site, Number(kernel[2]));
    byId("search").value = `${kernel[1]} ${kernel[2]}`;
    fillList();
    byId("kernels").scrollIntoView();
  } else if (layer) {
    const number = siteNumber.get(layer[1]);
    if (byId("card").open) byId("card").close();
    byId("layer").value = number === undefined ? "" : String(number);
    byId("search").value = number === undefined ? layer[1] : "";
    fillList();
    byId("kernels").scrollIntoView();
  }
  return undefined;
}
function decodeAddress(text) {
  try { return decodeURIComponent(text); } catch { return text; }
}

// Classes and filters

function fillClusters() {
  const body = byId("clusters-body"), found = data.clusters;
  if (!found) return body.replaceChildren(element("p", { class: "note" }, data.missing.clusters || "Class-specific clusters were not computed."));
  const site = data.sites[siteNumber.get(found.site)], rows = found.classes.length, columns = found.filters, bytes = bytesOf(found.probabilities);
  const order = found.of.map((_, filter) => filter).sort((a, b) => found.of[a] - found.of[b] || bytes[found.of[b] * columns + b] - bytes[found.of[a] * columns + a]);
  const across = Math.max(3, Math.min(18, Math.floor((Math.min(1500, body.clientWidth) - 150) / columns))), down = rows <= 60 ? 18 : 6;
  const canvas = element("canvas", { width: across * columns, height: down * rows, role: "img", "aria-label": `P, ${rows} classes by ${columns} filters; the list below gives the same information in words` });
  const told = element("p", { class: "soft small" }, "Hover over a cell to read its value; click to open the filter's card.");
  const cellAt = (event) => [Math.min(rows - 1, Math.floor(event.offsetY / down)), order[Math.min(columns - 1, Math.floor(event.offsetX / across))]];
  canvas.addEventListener("mousemove", (event) => {
    const [row, filter] = cellAt(event);
    told.textContent = `${found.classes[row]}, filter ${filter}: ${(bytes[row * columns + filter] / 255).toFixed(2)}`;
  });
  if (site) canvas.addEventListener("click", (event) => { location.hash = addressOf(site, cellAt(event)[1]); });
  drawHeat(canvas, bytes, rows, columns, order, colours.viridis);
  const names = rows <= 60 ? element("div", { class: "heat-names" }, found.classes.map((name) => { const own = element("div", { title: name }, name); own.style.height = `${down}px`; return own; })) : "";
  const members = found.classes.map((name, label) => [name, order.filter((filter) => found.of[filter] === label)]);
  const link = (filter) => (site ? element("a", { href: addressOf(site, filter) }, String(filter)) : String(filter));
  body.replaceChildren(
    element("p", { class: "soft" }, `The degree to which each of the ${columns} filters of ${found.target} belongs to each class (PICNN's P), ${found.trained ? "from training" : `learned post hoc on ${found.images} calibration images with the network frozen`}. Columns are filters, sorted by class; dark is 0, light is 1.`),
    element("div", { class: "heat", tabindex: "0", role: "region", "aria-label": "P as a heat map" }, element("div", { class: "heat-row" }, names, canvas)), told,
    element("details", {}, element("summary", {}, "Filters of each class"), element("dl", { class: "facts" }, members.flatMap(([name, filters]) => [
      element("dt", {}, name), element("dd", {}, filters.length ? filters.flatMap((filter, index) => (index ? [", ", link(filter)] : [link(filter)])) : "none")]))),
    ...camsOf(found));
  return undefined;
}

function camsOf(found) {
  if (!found.maps) return [];
  const blocks = found.maps.rows.map((row, index) => {
    const picture = data.pictures[index], name = found.classes[row.class];
    return element("div", {}, element("p", { class: "small name" }, `${picture.name}, for ${name}: ${found.of.filter((label) => label === row.class).length} filters in its cluster`),
      element("div", { class: "views" }, view(tileCanvas(picture.sheet, 0, `Image ${picture.name}`), "image"),
        ...["all filters", "the class's cluster", "all but the cluster"].map((part, place) => view(overlayCanvas(picture.sheet, 0, row.maps[place], found.maps.size, colours.inferno, `Grad-CAM by ${part} for ${name}`), part))));
  });
  return [element("h3", {}, "Grad-CAM by clusters"), element("p", { class: "soft" }, "For the predicted class; the three maps of an image share one scale."), element("div", { class: "cams" }, blocks)];
}

// About

function fillAbout() {
  const facts = [];
  data.methods.forEach((method) => facts.push([method.name, `${method.role === "the ranking" ? "The ranking that was used" : method.role === "in the ranking" ? "A member of the ranking" : "Shown for comparison only"}; in ${method.unit}${method.images ? `, on ${method.images} images` : ""}. Higher is more important; ranks are within a layer.`]));
  Object.entries(data.missing).filter(([part]) => !["pictures", "clusters", "neighbours", "kernels"].includes(part)).forEach(([part, why]) => facts.push([part, `Not available: ${why}`]));
  facts.push(["Images", `${data.images} calibration images for kernels, ${data.pictures.length} explained. ${data.labelled ? "Classes are those of the labels." : "There are no labels: classes are the network's predictions."} Test images are not used.`]);
  facts.push(["Evidence trees", "Contributions are gradient times activation, averaged over positions; each kernel is explained at its strongest position by the previous stage (Cheng et al., IJCV 131(5), 2023). Guided gradients: Springenberg et al., 2015."]);
  if (data.neighbours) facts.push(["Neighbourhoods", `Interventional Shapley values between kernels (${[...new Set(Object.values(data.neighbours.explainers))].join(", ")}), as on the edges of attribution graphs (Zheng et al., Neural Networks 179, 2024).`]);
  if (data.clusters) facts.push(["Clusters", "PICNN (Guo et al., AAAI 2024); Grad-CAM (Selvaraju et al., ICCV 2017)."]);
  if (data.patched) facts.push(["Patches", `Limited to ${data.patched} kernels per layer to keep the page small: those with the highest and the lowest scores, and those in evidence trees. Set another number with --evidence-kernels N.`]);
  byId("about-body").append(element("dl", { class: "facts" }, facts.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)])));
  const kernels = data.sites.filter((site) => site.layer && !site.isClasses).reduce((sum, site) => sum + site.kernels, 0);
  byId("kernels-intro").textContent = data.sites.length
    ? `${kernels} kernels in ${data.sites.filter((site) => site.layer && !site.isClasses).length} layers: scores by every method, classes, strongest patches, neighbours. ${data.planned ? "The verdicts, stays or goes, are the plan's." : "There is no plan yet, so there are no verdicts."}${data.patched ? `  Patches are shown for ${data.patched} kernels per layer and for those in evidence trees.` : ""}`
    : data.missing.kernels || "";
}

fillFilters();
fillPictures();
fillList();
fillAbout();
fillClusters();
for (const id of ["search", "layer", "class", "verdict", "order"]) byId(id).addEventListener("input", fillList);
for (const id of ["picture-class", "only-wrong"]) byId(id).addEventListener("input", fillPictures);
byId("more").addEventListener("click", showMore);
byId("card").addEventListener("close", () => { if (location.hash.startsWith("#kernel-")) history.replaceState(null, "", location.pathname + location.search); });
byId("card").addEventListener("click", (event) => { if (event.target === byId("card")) byId("card").close(); });
addEventListener("hashchange", followAddress);
followAddress();
