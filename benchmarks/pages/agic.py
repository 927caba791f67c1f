"""Blocks of the page on AGIC."""

from collections.abc import Mapping
from typing import Any

from benchmarks.pages.blocks import table, where

RESULTS = "agic.json"
NETWORKS = {"resnet20": "ResNet-20", "digits": "digits"}
GRAPHS = {
    "full": "full graph",
    "without_classes": "no edges to the classes, last stage's node features constant",
    "nodes_only": "node features only (no edges)",
    "edges_only": "edges only (features constant)",
    "shuffled": "kernels permuted within layers (edges shuffled)",
    "permuted labels": "full graph, permuted labels",
}
RANKINGS = {
    "agic": "lowest SA score",
    "agic, highest first": "highest SA score",
    "gap": "lowest by `gap`",
    "shapley": "lowest by `shapley`",
    "agic by readout": "lowest SA score by readout (first design)",
    "random": "random",
}
MISSING = "not measured"
Row = Mapping[str, Any]


def machine(results: Any) -> list[str]:
    """The machine of all sections."""
    return [f"Measured on {where(results)}."]


def classifier(results: Any) -> list[str]:
    """How well a graph predicts the class or the network's prediction."""
    found: dict[str, dict[tuple[str, str], Row]] = {}
    for rows in results["sections"]["classifier"].values():
        for row in rows:
            found.setdefault(row["graphs"], {})[row["target"], row["readout"]] = row
    columns = [(target, readout) for target in ("class", "prediction") for readout in ("mean", "kernels")]
    rows = [(shown, *(_accuracy(found[name].get(column)) for column in columns)) for name, shown in GRAPHS.items()]
    header = (
        "ResNet-20, accuracy in % (95% CI of the first seed)",
        *(f"{target}, `{readout}`" for target, readout in columns),
    )
    return table(header, rows)


def claim(results: Any) -> list[str]:
    """Full graphs compared with controls, paired by image."""
    rows = [
        (
            row["readout"],
            row["target"],
            row["full minus"].replace("_", " "),
            f"{row['points']:+.1f} ({row['low']:+.1f} to {row['high']:+.1f})",
        )
        for row in results["sections"]["claim"]["resnet20"]
    ]
    return table(("readout", "target", "full graph minus", "points (95% CI)"), rows, left=3)


def cutting_resnet20(results: Any) -> list[str]:
    """ResNet-20 with shares of the kernels inside blocks cut, not repaired."""
    return _unrepaired(results, "resnet20")


def cutting_digits(results: Any) -> list[str]:
    """The digits network likewise."""
    return _unrepaired(results, "digits")


def repaired_resnet20(results: Any) -> list[str]:
    """The same, repaired."""
    return _repaired(results, "resnet20")


def repaired_digits(results: Any) -> list[str]:
    """The digits network likewise."""
    return _repaired(results, "digits")


def deletion(results: Any) -> list[str]:
    """Areas under the deletion and pruning curves."""
    rows = [
        (NETWORKS[row["network"]], f"`{row['ranker']}`", f"{row['deletion_area']:.3f}", f"{row['pruning_area']:.3f}")
        for found in results["sections"]["deletion"].values()
        for row in found
    ]
    return table(("network", "ranking", "deletion", "pruning"), rows, left=2)


def seeds(results: Any) -> list[str]:
    """Agreement of three seeds, time and memory."""
    rows = [
        (
            NETWORKS[row["network"]],
            str(row["images"]),
            str(row["encoder_steps"]),
            f"{row['spearman']:.2f}",
            f"{row['lowest_layer']:.2f}",
            f"{row['seconds']:.0f} s",
            f"{row['peak_gb']:.1f} GB",
        )
        for found in results["sections"]["seeds"].values()
        for row in found
    ]
    header = (
        "network", "images", "steps of the encoder", "Spearman, mean over layers and pairs of three seeds", "lowest layer",
        "seconds, median", "peak memory",
    )  # fmt: skip
    return table(header, rows)


def _unrepaired(results: Any, network: str) -> list[str]:
    shares = [step / 10 for step in range(1, 8)]
    rows = [
        (shown, *(_cut(results, network, name, share, "none") for share in shares)) for name, shown in RANKINGS.items()
    ]
    whole = results["sections"]["cutting"][f"{network}, agic"][0]["whole"]
    header = (f"{NETWORKS[network]} ({whole:.1f}% whole), not repaired", *(f"{100 * share:.0f}%" for share in shares))
    return table(header, rows)


def _repaired(results: Any, network: str) -> list[str]:
    columns = [(share, repair) for repair in ("bn", "reconstruct") for share in (0.3, 0.5)]
    rows = [(shown, *(_cut(results, network, name, *column) for column in columns)) for name, shown in RANKINGS.items()]
    names = {"bn": "BatchNorm", "reconstruct": "reconstruction"}
    return table(
        (f"{NETWORKS[network]}, repaired", *(f"{100 * share:.0f}%, {names[repair]}" for share, repair in columns)), rows
    )


def _cut(results: Any, network: str, ranking: str, share: float, repair: str) -> str:
    for row in results["sections"]["cutting"][f"{network}, {ranking}"]:
        if (row["share"], row["repair"]) == (share, repair):
            value = f"{row['accuracy']:.1f}"
            return f"{value} ({row['worst']:.1f} to {row['best']:.1f})" if row["seeds"] > 1 else value
    return MISSING


def _accuracy(row: Row | None) -> str:
    if row is None:
        return MISSING
    return f"{row['accuracy']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
