"""Draws the rooms of the package and the imports between them: `python scripts/architecture.py [--check]`.

In: the table of rooms in CONTRIBUTING.md, and the imports and docstrings in the rooms. Out: `docs/architecture.svg`, and what
stands between markers in `docs/architecture.md`. Equal sources give equal bytes; nothing but the standard library is needed.
"""

import argparse
import ast
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE, PAGE = Path("docs/architecture.svg"), Path("docs/architecture.md")
BLOCK = re.compile(r"(?P<open><!-- architecture: (?P<name>\w+) -->\n).*?(?P<close><!-- end -->)", re.DOTALL)
ROW = re.compile(r"^\| `(?P<name>\w+)` \| (?P<holds>.+) \|$", re.MULTILINE)
ROLE = re.compile(r":\w+:`~?(?:\w+\.)*(\w+)`")

WIDTH, MARGIN, GAP = 800, 6, 14
BOX, LANES, LANE = 496, 548, 45
"""Of the picture, in its units: the width of a room, where the first lane of arrows is, and how far the next one."""
PAD, TITLE, LINE, CHIP, BETWEEN = 14, 20, 21, 22, 6
"""Inside a room: its border, the heights of its name, of a line and of a sub-package, and the space between sub-packages."""
LETTER, LETTERS = 7.6, 72
"""The width of a letter of a sub-package, and how many letters a line holds."""
COLOURS = ("#6a7181", "#2a72c4", "#258053", "#996711", "#bd4e2c", "#c63a80", "#8759c8")
"""One for each room, lowest first. White on them has a contrast of 4.9, they have 3.3 or more on white and on dark pages."""
NEUTRAL = "#808895"
SANS = "ui-sans-serif, system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


@dataclass(frozen=True)
class Package:
    """A room or a sub-package: its folder below the root, what its docstring says first, and the file to open first."""

    folder: str
    purpose: str
    first: str


@dataclass(frozen=True)
class House:
    """The rooms, lowest first, with what each holds; all packages; and how many import statements of one room name another."""

    rooms: Mapping[str, str]
    packages: tuple[Package, ...]
    imports: Mapping[tuple[str, str], int]

    def inside(self, room: str) -> list[str]:
        """The sub-packages of a room, named from the room."""
        folders = [package.folder.partition("/") for package in self.packages]
        return [inner for outer, _, inner in folders if outer == room and inner]


def read_house(root: Path) -> House:
    """Everything that the picture and the page show.

    Raises:
        ValueError: CONTRIBUTING.md has no table of rooms, or a module imports what is no room.
    """
    table = (root / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("<!-- floors -->")[2]
    rooms = {row["name"]: row["holds"] for row in ROW.finditer(table.partition("<!-- end -->")[0])}
    if not rooms or len(rooms) > len(COLOURS):
        raise ValueError(
            f"CONTRIBUTING.md must list 1 to {len(COLOURS)} rooms after <!-- floors --> (found {len(rooms)})"
        )
    packages: list[Package] = []
    for room in rooms:
        folders = sorted(path.parent for path in (root / room).rglob("__init__.py"))
        packages += [read_package(root, folder) for folder in folders]
    imports: Counter[tuple[str, str]] = Counter()
    for room in rooms:
        for path in sorted((root / room).rglob("*.py")):
            imports.update((room, other) for other in rooms_imported(root, path) if other != room)
    unknown = sorted({other for _, other in imports} - set(rooms))
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: imported, but no room of the table in CONTRIBUTING.md")
    return House(rooms, tuple(packages), imports)


def read_package(root: Path, folder: Path) -> Package:
    """A package from its docstring, which names the file to open first."""
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    text = ROLE.sub(r"`\1`", text.replace("``", "`"))
    opened = re.search(r"\bOpen\s+`([\w/]+\.py)`", text)
    purpose = " ".join(text.partition("\n\n")[0].split()).removesuffix(".")
    return Package(folder.relative_to(root).as_posix(), purpose, opened[1] if opened else "")


def rooms_imported(root: Path, path: Path) -> Iterator[str]:
    """The room of every relative import statement in a module, wherever in it the statement stands."""
    parts = path.relative_to(root).parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            target = [*parts[: len(parts) - node.level], *(node.module or "").split(".")]
            target = [part for part in target if part]
            yield from [target[0]] if target else [alias.name for alias in node.names]


@dataclass(frozen=True)
class Box:
    """A room in the picture: where it lies, where arrows arrive and leave, what it holds, and the rows of its sub-packages."""

    room: str
    floor: int
    top: float
    height: float
    holds: tuple[str, ...]
    chips: tuple[tuple[str, ...], ...]

    @property
    def arriving(self) -> float:
        """Above ``leaving``, so that a lane ends before the room's own line would cross it."""
        return self.top + PAD + 8

    @property
    def leaving(self) -> float:
        return self.top + self.height - PAD - 8


def place_boxes(house: House) -> list[Box]:
    """The rooms from the top of the picture to its bottom."""
    boxes: list[Box] = []
    top = float(MARGIN)
    for floor, room in reversed(list(enumerate(house.rooms))):
        holds, chips = tuple(textwrap.wrap(house.rooms[room], LETTERS)), rows_of(house.inside(room))
        height = 2 * PAD + TITLE + len(holds) * LINE + len(chips) * (CHIP + BETWEEN) + (2 if chips else 0)
        boxes.append(Box(room, floor, top, height, holds, chips))
        top += height + GAP
    return boxes


def rows_of(names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Sub-packages in as many rows as they need."""
    rows: list[list[str]] = []
    left = 0.0
    for name in names:
        if not rows or left < width_of(name):
            rows.append([])
            left = BOX - 2 * PAD
        rows[-1].append(name)
        left -= width_of(name) + BETWEEN
    return tuple(map(tuple, rows))


def width_of(name: str) -> float:
    """Of a sub-package in the picture."""
    return round(len(name) * LETTER + 16, 1)


def draw(house: House) -> str:
    """The picture: rooms as a house, and for each room a lane down which the imports from above reach it."""
    boxes = place_boxes(house)
    height = boxes[-1].top + boxes[-1].height + MARGIN
    lanes = {box.room: LANES + LANE * index for index, box in enumerate(boxes[1:])}
    said = f"{len(boxes)} rooms, each importing only from those below it: {', '.join(box.room for box in boxes)}."
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}"'
        ' role="img" aria-labelledby="title said">',
        '<title id="title">The rooms of secateur and the imports between them</title>',
        f'<desc id="said">{said}</desc>',
        "<style>",
        f"text {{ font: 13px {SANS}; fill: #fff }} .room {{ font: 700 17px {MONO} }} .package {{ font: 12.5px {MONO} }}",
        ".count { font-weight: 600; text-anchor: middle; font-variant-numeric: tabular-nums }",
        "path { fill: none; stroke-width: 2 }",
        "</style>",
    ]
    for box in boxes:
        lines += draw_arrows(house, box, boxes, lanes)
    for box in boxes:
        lines += draw_counts(house, box, lanes)
        lines += draw_room(box)
    return "\n".join([*lines, "</svg>", ""])


def draw_arrows(house: House, box: Box, boxes: Sequence[Box], lanes: Mapping[str, float]) -> list[str]:
    """The line that leaves a room, as far as the last lane it joins; and the lane that ends in the room."""
    edge, lines = MARGIN + BOX, []
    joined = [lane for room, lane in lanes.items() if house.imports.get((box.room, room))]
    if joined:
        lines.append(f'<path stroke="{NEUTRAL}" d="M{edge} {box.leaving:g}H{max(joined):g}"/>')
    above = [other for other in boxes if house.imports.get((other.room, box.room))]
    if above:
        lane, colour = lanes[box.room], COLOURS[box.floor]
        down = f"M{lane:g} {above[0].leaving:g}V{box.arriving - 8:g}q0 8 -8 8H{edge + 9}"
        tip = f"M{edge + 1} {box.arriving:g}l11 -5.5v11z"
        lines += [f'<path stroke="{colour}" d="{down}"/>', f'<path style="fill:{colour}" d="{tip}"/>']
    return lines


def draw_counts(house: House, box: Box, lanes: Mapping[str, float]) -> list[str]:
    """Where a room joins the lanes of others: how many of its import statements name each."""
    lines = []
    for other, lane in lanes.items():
        count, colour = house.imports.get((box.room, other), 0), COLOURS[list(house.rooms).index(other)]
        if count:
            lines += [
                f"<g><title>{box.room} imports from {other}: {count}</title>"
                f'<rect x="{lane - 19:g}" y="{box.leaving - 10:g}" width="38" height="20" rx="10" fill="{colour}"/>',
                f'<text class="count" x="{lane:g}" y="{box.leaving + 4.5:g}">{count}</text></g>',
            ]
    return lines


def draw_room(box: Box) -> list[str]:
    """A room with its name, what it holds and its sub-packages."""
    x, y = MARGIN + PAD, box.top + PAD
    place = f'x="{MARGIN}" y="{box.top:g}" width="{BOX}" height="{box.height:g}"'
    lines = [
        f'<rect {place} rx="9" fill="{COLOURS[box.floor]}"/>',
        f'<text class="room" x="{x}" y="{y + 14:g}">{box.room}</text>',
    ]
    y += TITLE
    for line in box.holds:
        lines.append(f'<text x="{x}" y="{y + 14:g}">{escape(line)}</text>')
        y += LINE
    y += BETWEEN
    for row in box.chips:
        left = float(x)
        for name in row:
            place = f'x="{left:g}" y="{y:g}" width="{width_of(name):g}" height="{CHIP}"'
            lines += [
                f'<rect {place} rx="5" fill="#000" fill-opacity="0.28"/>',
                f'<text class="package" x="{left + 8:g}" y="{y + 15:g}">{name}</text>',
            ]
            left += width_of(name) + BETWEEN
        y += CHIP + BETWEEN
    return lines


def packages_table(house: House) -> list[str]:
    """Every room, from the top, with its sub-packages, and which file to open first."""
    lines = ["| package | what it is for | open first |", "|---|---|---|"]
    for room in reversed(house.rooms):
        for package in house.packages:
            if package.folder.split("/")[0] == room:
                name = f"**`{room}`**" if package.folder == room else f"`{package.folder}`"
                purpose = package.purpose.replace("|", "\\|")
                lines.append(f"| {name} | {purpose} | `{package.first}` |")
    return lines


def imports_table(house: House) -> list[str]:
    """How many import statements of each room (rows) name each room below it (columns)."""
    below = list(reversed(house.rooms))[1:]
    lines = ["| | " + " | ".join(f"`{room}`" for room in below) + " |", "|---|" + "---:|" * len(below)]
    for room in list(reversed(house.rooms))[:-1]:
        counts = (house.imports.get((room, other), 0) for other in below)
        lines.append(f"| `{room}` | " + " | ".join(str(count or "") for count in counts) + " |")
    return lines


MAKERS: Mapping[str, Callable[[House], list[str]]] = {"packages": packages_table, "imports": imports_table}
"""What makes each block of the page."""


def filled(page: str, house: House) -> str:
    """The page with its blocks regenerated.

    Raises:
        ValueError: a block is missing, or nothing makes one.
    """
    names = [found["name"] for found in BLOCK.finditer(page)]
    if sorted(names) != sorted(MAKERS):
        raise ValueError(
            f"{PAGE} must have the blocks {', '.join(MAKERS)}, once each (found {', '.join(names) or 'none'})"
        )

    def make(found: re.Match[str]) -> str:
        return "\n".join([found["open"], *MAKERS[found["name"]](house), "", found["close"]])

    return BLOCK.sub(make, page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where a file differs")
    check = parser.parse_args().check
    house, wrong = read_house(ROOT), False
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    for path, text in ((PICTURE, draw(house)), (PAGE, filled(page, house))):
        there = (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).is_file() else ""
        if there != text:
            wrong = True
            print(f"{path.as_posix()} {'differs from the code' if check else 'written'}")
            if not check:
                (ROOT / path).write_text(text, encoding="utf-8", newline="\n")
    if check and wrong:
        print("Run `make figures`.")
        sys.exit(1)


if __name__ == "__main__":
    main()
