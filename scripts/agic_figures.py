"""Makes the pictures of docs/methods/agic.md. Run again: python scripts/agic_figures.py

One attribution graph for each class of the embedded digits, drawn from the class down along its strongest edges; and what
cutting costs, from the rows of ``python -m benchmarks.agic``.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch_geometric.data import HeteroData

from secateur.common.environment import seed_everything
from secateur.explain.agic.build import build_graphs
from secateur.explain.agic.layout import FEEDS, GraphLayout
from secateur.network.images.images import Images
from secateur.network.images.load import load_images
from secateur.network.load import load_model

ROOT = Path(__file__).resolve().parent.parent
OUT, RESULTS = ROOT / "docs" / "methods", ROOT / "benchmarks" / "results" / "agic.json"
FOLLOWED = 3  # edges of each node
DRAWN = 24  # nodes of each layer that are gone on from
FOR, AGAINST = "#1b7f5c", "#b5452c"
LINES = {
    "agic": ("#1b7f5c", "-"), "agic, highest first": ("#1b7f5c", ":"), "gap": ("#2b5fa8", "-"), "shapley": ("#a87b1b", "-"),
    "agic by readout": ("#8a8a8a", "--"), "random": ("#333333", "-"),
}  # fmt: skip


def main() -> None:
    seed_everything(0)
    draw_graphs(OUT / "agic-graphs.png")
    if RESULTS.exists():
        draw_cutting(json.loads(RESULTS.read_text())["sections"].get("cutting", {}), OUT / "agic-cutting.png")


def draw_graphs(path: Path) -> None:
    """A picture of one graph of each class, side by side."""
    network = load_model("digits")
    splits = load_images("digits", network.preprocessing)
    calibration, validation = splits.train.sample(1000, 0), splits.validation
    with torch.no_grad():
        predicted = torch.cat([network.logits(batch).argmax(1) for batch, _ in validation.batches(256)])
    right = predicted == validation.labels
    chosen = torch.stack([((validation.labels == label) & right).nonzero()[0, 0] for label in range(10)])
    images = validation.subset(chosen)
    with tempfile.TemporaryDirectory() as folder:
        graphs = build_graphs(network, images, calibration, Path(folder))
        figure = Figure(figsize=(15, 7.8), layout="constrained")
        for number, axes in enumerate(figure.subplots(2, 5).flat):
            draw_graph(axes, graphs[number], graphs.layout, images, number)
    figure.suptitle(
        "What holds each digit up: from the class (right) down its strongest Shapley edges; green for, red against",
        fontsize=12,
    )
    figure.savefig(path, dpi=100)


def draw_graph(axes: Axes, graph: HeteroData, layout: GraphLayout, images: Images, number: int) -> None:
    """Columns are layers and joins in network order, dots their channels; a line is as wide as the share it passes on."""
    columns = {name: column for column, name in enumerate(layout.nodes)}
    for name, count in layout.nodes.items():
        heights = [channel / max(1, count - 1) for channel in range(count)]
        axes.scatter([columns[name]] * count, heights, s=1.5, color="#c4c4c4", zorder=1)
    (head,) = (name for name, kind in layout.kinds.items() if kind == "class")
    weight = {name: torch.zeros(count) for name, count in layout.nodes.items()}
    weight[head][int(graph.prediction)] = 1.0
    lines, widths, colours = [], [], []
    for target in reversed(list(layout.nodes)):
        going_on = weight[target].topk(min(DRAWN, len(weight[target])))
        for node, importance in zip(going_on.indices.tolist(), going_on.values.tolist(), strict=True):
            if importance == 0:
                continue
            for source, channel, share in strongest(graph, layout, target, node):
                weight[source][channel] += importance * abs(share)
                ends = [(columns[source], source, channel), (columns[target], target, node)]
                lines.append([(column, at / max(1, layout.nodes[name] - 1)) for column, name, at in ends])
                widths.append(0.25 + 6 * importance * abs(share))
                colours.append(FOR if share > 0 else AGAINST)
    axes.add_collection(LineCollection(lines, linewidths=widths, colors=colours, alpha=0.55, zorder=2))
    axes.set_xticks(range(len(columns)), list(columns), rotation=90, fontsize=5)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(f"class {int(graph.y)}", fontsize=11, pad=14)
    picture = axes.inset_axes((0.0, 1.01, 0.16, 0.16))
    picture.imshow(images.pixels(torch.tensor([number]))[0, 0], cmap="gray_r")
    picture.set_axis_off()


def strongest(graph: HeteroData, layout: GraphLayout, target: str, node: int) -> list[tuple[str, int, float]]:
    """(source, channel, share) of a node's strongest incoming edges."""
    found = []
    for source, other in layout.links:
        if other == target:
            store = graph[source, FEEDS, target]
            own = store.edge_index[1] == node
            found += [
                (source, channel, share)
                for channel, share in zip(
                    store.edge_index[0, own].tolist(), store.edge_weight[own].tolist(), strict=True
                )
            ]
    return sorted(found, key=lambda edge: -abs(edge[2]))[:FOLLOWED]


def draw_cutting(parts: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Accuracy left against the share cut, nothing repaired; random with the range of its seeds."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    for axes, network in zip(figure.subplots(1, 2), ("digits", "resnet20"), strict=True):
        for ranking, (colour, style) in LINES.items():
            rows = [row for row in parts.get(f"{network}, {ranking}", []) if row["repair"] == "none"]
            if not rows:
                continue
            shares = [0.0, *(row["share"] for row in rows)]
            axes.plot(
                shares, [rows[0]["whole"], *(row["accuracy"] for row in rows)], style, color=colour, label=ranking
            )
            if ranking == "random":
                low, high = ([rows[0]["whole"], *(row[end] for row in rows)] for end in ("worst", "best"))
                axes.fill_between(shares, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.set_title(network)
        axes.set_xlabel("share of the kernels inside blocks cut")
        axes.set_ylabel("accuracy on test images, %")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
