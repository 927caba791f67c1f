"""Blocks of the page on pruning CIFAR ResNets, compared with torch-pruning."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.pages.blocks import interval, table, where

RESULTS = "pruning.json"
NETWORKS = {"resnet20": "ResNet-20", "resnet56": "ResNet-56"}
BUDGETS = (0.77, 0.67, 0.5, 0.33)
NAMES = {"fpgm": "FPGM", "taylor": "Taylor", "lamp": "LAMP", "bn-scale": "BN scale"}
REPAIRS = {"bn": "BatchNorm", "reconstruct": "reconstruction"}
Row = Mapping[str, Any]
MISSING = "not measured"


def commands(results: Any) -> list[str]:
    """The results of single commands of secateur on ResNet-20."""
    rows = []
    for budget, repair in ((0.67, "bn"), (0.67, "reconstruct"), (0.5, "reconstruct")):
        row = _of(results, network="resnet20", by="secateur", choice="gap", allocation="sensitivity", repair=repair,
                  budget=budget, epochs=0)[0]  # fmt: skip
        command = f"`--macs {budget:g} --repair {repair} --epochs 0`"
        rows.append((command, f"{100 * row['macs_left']:.1f}%", f"{100 * row['accuracy']:.2f}%", _drop(row)))
    dense = 100 * results["rows"][0]["dense_accuracy"]
    header = (f"ResNet-20, dense {dense:.2f}%", "MACs left", "accuracy", "drop, points (95% CI)")
    return [f"{results['data']}; {where(results)}:", "", *table(header, rows)]


def without_training(results: Any) -> list[str]:
    """secateur compared with the best of torch-pruning's choices."""
    rows = []
    for network, name in NETWORKS.items():
        for budget in BUDGETS:
            asked = {"network": network, "budget": budget, "epochs": 0}
            (own,) = _of(results, by="secateur", choice="gap", allocation="sensitivity", repair="reconstruct", **asked)
            peers = _of(results, by="torch-pruning", repair="bn", **asked)
            repaired = _of(results, by="torch-pruning", repair="reconstruct", **asked)
            best, again = (_best(some) for some in (peers, repaired))
            few = f" (of {len(repaired)})" if repaired and len(repaired) < len(peers) else ""
            rows.append((name, f"{budget:g}", _drop(own), f"{_named(best)} (of {len(peers)})", f"{_named(again)}{few}"))
    header = (
        "network", "MACs left", "secateur", "best torch-pruning choice, BatchNorm re-estimated",
        "the same with secateur's reconstruction",
    )  # fmt: skip
    return table(header, rows)


def share_of_the_best_peer(results: Any) -> list[str]:
    """The target: a share of the best peer's loss."""
    parts = []
    for budget in (0.67, 0.5):
        shares = []
        for network, name in NETWORKS.items():
            asked = {"network": network, "budget": budget, "epochs": 0}
            (own,) = _of(results, by="secateur", choice="gap", allocation="sensitivity", repair="reconstruct", **asked)
            best = _best(_of(results, by="torch-pruning", repair="bn", **asked))
            assert best is not None
            shares.append(f"{own['drop_points'] / best['drop_points']:.2f} ({name})")
        parts.append(f"{' and '.join(shares)} at {budget:g} of the MACs")
    return [f"secateur loses {'; '.join(parts)} of what the best peer loses."]


def after_training(results: Any) -> list[str]:
    """The same fine-tuning of two epochs after every cut of ResNet-20."""
    own = {
        "secateur, reconstructed": {
            "by": "secateur",
            "allocation": "sensitivity",
            "repair": "reconstruct",
            "choice": "gap",
        },
        "secateur, distilled": {"by": "secateur", "allocation": "sensitivity", "repair": "distill", "choice": "gap"},
        "secateur, uniform": {"by": "secateur", "allocation": "uniform", "choice": "gap"},
    }
    peers = {
        f"{NAMES.get(choice, choice)}, global": {"by": "torch-pruning", "allocation": "global", "choice": choice}
        for choice in ("fpgm", "magnitude", "taylor", "random")
    }
    rows = []
    for budget in (0.5, 0.33):
        asked = {"network": "resnet20", "budget": budget, "epochs": 2}
        cells = [_of(results, **asked, **how) for how in (own | peers).values()]
        rows.append((f"{budget:g}", *(_drop(found[0]) if found else MISSING for found in cells)))
    return table(("MACs left", *own, *peers), rows)


def where_it_comes_from(results: Any) -> list[str]:
    """ResNet-20 by choice, allocation and repair."""
    rows = []
    for budget in (0.67, 0.5):
        for choice in ("gap", "magnitude", "random"):
            cells = []
            for allocation in ("uniform", "sensitivity"):
                for repair in REPAIRS:
                    found = _of(results, network="resnet20", by="secateur", choice=choice, allocation=allocation,
                                repair=repair, budget=budget, epochs=0)  # fmt: skip
                    cells.append(f"{found[0]['drop_points']:.2f}" if found else MISSING)
            rows.append((f"{budget:g}", choice, *cells))
    columns = [f"{share}, {repair}" for share in ("uniform", "measured") for repair in REPAIRS.values()]
    return table(("MACs left", "ranking", *columns), rows, left=2)


def _of(results: Any, **wanted: Any) -> list[Row]:
    return [row for row in results["rows"] if all(row[key] == value for key, value in wanted.items())]


def _best(rows: Sequence[Row]) -> Row | None:
    return min(rows, key=lambda row: float(row["drop_points"]), default=None)


def _drop(row: Row) -> str:
    return interval(row["drop_points"], row["drop_interval"]["low"], row["drop_interval"]["high"])


def _named(row: Row | None) -> str:
    return MISSING if row is None else f"{_drop(row)}, {NAMES.get(row['choice'], row['choice'])}, {row['allocation']}"
