"""Blocks of the page on PICNN."""

import statistics
from collections.abc import Mapping
from typing import Any

from scipy import stats

from benchmarks.pages.blocks import interval, table, where

RESULTS = "picnn.json"
TRAINED = {"std": "plain (STD)", "bernoulli": "PICNN", "gumbel": "Gumbel", "csg": "CSG"}
ACCURACIES = ("acc1", "acc2", "acc3")
MEASURES = ("ACC1, % (95% CI)", "ACC2, % (95% CI)", "ACC3, % (95% CI)", "MIS (95% CI)")
Row = Mapping[str, Any]


def cost(results: Any) -> list[str]:
    """The cost of a training step with the pathway, and of learning P alone."""
    (step,) = results["sections"]["overhead"]["resnet20"]
    seconds = {
        network: next(row["seconds"] for row in rows if row["learned by"] == "bernoulli")
        for network, rows in results["sections"]["post_hoc"].items()
    }
    return [
        f"A training step of ResNet-20 (batch {step['batch']}) with the pathway takes "
        f"{interval(step['ratio'], step['low'], step['high'], 3)} times one without. P alone, on 1,000 images, takes "
        f"{seconds['resnet20']:.1f} s on ResNet-20 and {seconds['digits']:.1f} s on the digits ({where(results)}).",
    ]


def digits(results: Any) -> list[str]:
    """The digits, trained from scratch with several seeds."""
    rows = []
    for name, found in results["sections"]["digits"].items():
        trained, _, decay = name.partition(", decay ")
        own = _seeds(found)
        cells = [_over_seeds([row[key] for row in own]) for key in ACCURACIES]
        rows.append((TRAINED[trained], decay, *cells, f"{statistics.mean(row['mis'] for row in own):.3f}"))
    seeds = max(len(_seeds(found)) for found in results["sections"]["digits"].values())
    header = (f"trained by, {seeds} seeds", "weight decay", "ACC1, %", "ACC2, %", "ACC3, %", "MIS")
    return table(header, rows, left=2)


def decay(results: Any) -> list[str]:
    """Weight decays, compared on validation images."""
    rows = [
        (
            f"{row['weight decay']:g}" + (" (chosen)" if row["chosen"] else ""),
            str(row["seeds"]),
            *(f"{row[key]:.1f}" for key in ACCURACIES),
        )
        for row in results["sections"]["decay"]["digits"]
    ]
    return table(("weight decay", "seeds", "ACC1, %", "ACC2, %", "ACC3, %"), rows)


def sweeps(results: Any) -> list[str]:
    """Lambda, and filters per class of a new layer."""
    rows = [
        (row["what"], f"{row['value']:g}", TRAINED[row["trained by"]], *_figures(row))
        for found in results["sections"]["sweeps"].values()
        for row in found
    ]
    return table(
        ("setting", "value", "trained by", "ACC1, % (95% CI)", "ACC2, % (95% CI)", "ACC3, % (95% CI)", "MIS (95% CI)"),
        rows,
        left=3,
    )


def fine_tuned(results: Any) -> list[str]:
    """ResNet-20, fine-tuned for a few epochs, and post hoc."""
    rows = [
        (TRAINED[name], str(row["epochs"]), str(row["kept"]), *_figures(row))
        for name, (row,) in results["sections"]["table"].items()
    ]
    rows += [
        (f"post hoc, {TRAINED[row['learned by']]}", "0", "–", *_figures(row))
        for row in results["sections"]["post_hoc"]["resnet20"]
    ]
    return table(("ResNet-20, trained by", "epochs", "epoch kept", *MEASURES), rows)


def cutting_resnet20(results: Any) -> list[str]:
    """A class's own cluster set to zero."""
    return _cutting(results, "resnet20", "ResNet-20")


def cutting_digits(results: Any) -> list[str]:
    """The digits likewise."""
    return _cutting(results, "digits", "digits")


def recovery(results: Any) -> list[str]:
    """Pruned, reconstructed and fine-tuned, with the pathway's loss and without."""
    rows = [
        (row["state"], f"{100 * row['macs']:.1f}%", *_figures(row))
        for found in results["sections"]["recovery"].values()
        for row in found
    ]
    return table(("ResNet-20", "MACs left", *MEASURES), rows)


def ranking(results: Any) -> list[str]:
    """The ranker picnn compared with others."""
    rows = [
        (
            f"`{row['ranked by']}`, seed {row['ranking seed']}",
            f"{100 * row['macs']:.1f}%",
            interval(row["drop"], row["low"], row["high"]),
        )
        for found in results["sections"]["ranking"].values()
        for row in found
    ]
    return table(("ranked by", "MACs left", "drop, points (95% CI)"), rows)


def _seeds(rows: list[Row]) -> list[Row]:
    """The rows of single seeds; the results hold their mean as well."""
    return [row for row in rows if isinstance(row.get("training seed"), int)]


def _cutting(results: Any, network: str, title: str) -> list[str]:
    rows = [
        (
            row["class"],
            str(row["filters"]),
            interval(row["own drop"], row["low"], row["high"], 1),
            f"{row['mean drop of the others']:.1f}",
            f"{row['largest drop of another']:.1f}",
            "yes" if row["held"] else "no",
        )
        for row in results["sections"]["cutting"][network]
    ]
    header = (title, "filters", "own drop, points (95% CI)", "others' mean", "largest other", "held")
    return table(header, rows)


def _figures(row: Row) -> list[str]:
    mis = row["mis interval"]
    accuracies = [interval(row[key], *row[f"{key} interval"], 1) for key in ACCURACIES]
    return [*accuracies, interval(row["mis"], mis["low"], mis["high"], 3)]


def _over_seeds(values: list[float]) -> str:
    mean, half = statistics.mean(values), 0.0
    if len(values) > 1:
        half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return interval(mean, mean - half, mean + half, 1)
