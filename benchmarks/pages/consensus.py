"""Blocks of the page on the consensus."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.pages.blocks import table

RESULTS = "consensus.json"
BUDGETS = ("1/1.3", "1/1.5", "1/2", "1/3")
SEEDS = (0, 1, 2)
MEMBERS = ("agic", "gap", "picnn")
RANKINGS = {
    "consensus": "consensus", "agic": "agic", "gap": "gap", "picnn": "picnn", "agic,gap": "without picnn",
    "agic,picnn": "without gap", "gap,picnn": "without agic", "random": "random", "magnitude": "magnitude",
    "taylor": "Taylor", "fpgm": "FPGM", "bn-scale": "BN scale", "lamp": "LAMP", "car": "CAR",
}  # fmt: skip
EARLIER = {
    "consensus, seed 0, weighted ranks alone": "weighted ranks alone",
    "consensus, seed 0, before orders were tried": "each group by its own order",
    "consensus, seed 0": "the best of five plans (now)",
}
Row = Mapping[str, Any]


def resnet20(results: Any) -> list[str]:
    """Every ranking of ResNet-20 with three calibration seeds."""
    return _network(results, "resnet20")


def resnet56(results: Any) -> list[str]:
    """Every ranking of ResNet-56 with three calibration seeds."""
    return _network(results, "resnet56")


def machines(results: Any) -> list[str]:
    """The machine of each row."""
    lines = []
    for network in ("resnet20", "resnet56"):
        found: dict[str, set[str]] = {}
        for name, rows in results["sections"][network].items():
            ranking, _, seed = name.partition(", seed ")
            if ranking in RANKINGS and seed in map(str, SEEDS):
                machine = rows[0].get("machine", "")
                found.setdefault(_plain(machine), set()).add(f"{RANKINGS[ranking]} {seed}")
        most = max(found, key=lambda machine: len(found[machine]))
        rest = "; ".join(
            f"{', '.join(sorted(names))} on {machine}" for machine, names in found.items() if machine != most
        )
        lines.append(f"- {_title(network)}: on {most}" + (f", but {rest}." if rest else "."))
    return ["Machines, by ranking and calibration seed:", "", *lines]


def averages(results: Any) -> list[str]:
    """The consensus and its members, averaged over the seeds."""
    rows = []
    for network in ("resnet20", "resnet56"):
        for name in ("consensus", *MEMBERS):
            means = [statistics.mean(_drops(results, network, name, budget)) for budget in BUDGETS]
            rows.append((_title(network), name, *(f"{mean:.2f}" for mean in means)))
    return table(("network", "ranking", *BUDGETS), rows, left=2)


def lines_held(results: Any) -> list[str]:
    """Whether the two targets, which were set beforehand, were met."""
    rows = []
    for network in ("resnet20", "resnet56"):
        behind = ahead = cells = 0
        for budget in BUDGETS:
            for seed in SEEDS:
                own = _row(results, network, "consensus", budget, seed)
                members = [_row(results, network, name, budget, seed)["drop"] for name in MEMBERS]
                half = (own["high"] - own["low"]) / 2
                cells += 1
                behind += own["drop"] - min(members) <= half
                ahead += own["drop"] < statistics.mean(members)
        rows.append((_title(network), f"{behind} of {cells}", f"{ahead} of {cells}"))
    header = ("network", "within the interval of its best member", "better than its members' mean")
    return table(header, rows)


def worst_cells(results: Any) -> list[str]:
    """The cells in which the consensus is furthest behind its best member and its members' mean."""
    lines = []
    for network in ("resnet20", "resnet56"):
        gaps = []
        for budget in BUDGETS:
            for seed in SEEDS:
                own = _row(results, network, "consensus", budget, seed)
                members = [_row(results, network, name, budget, seed)["drop"] for name in MEMBERS]
                half, where = (own["high"] - own["low"]) / 2, f"{budget}, seed {seed}"
                gaps.append((own["drop"] - min(members), own["drop"] - statistics.mean(members), half, where))
        best, mean = max(gaps), max(gaps, key=lambda gap: gap[1])
        lines.append(
            f"- {_title(network)}: at most {best[0]:.2f} points behind its best member ({best[3]}; the half-width is "
            f"{best[2]:.2f}), at most {mean[1]:.2f} behind the members' mean ({mean[3]})."
        )
    return lines


def earlier(results: Any) -> list[str]:
    """Earlier designs, ResNet-20, seed 0."""
    section = results["sections"]["resnet20"]
    rows = [
        (shown, *(f"{row['drop']:.2f}" for row in section[name]), _plain(section[name][0]["machine"]))
        for name, shown in EARLIER.items()
    ]
    return table(("ResNet-20, seed 0", *BUDGETS, "machine"), rows)


def on_a_cpu(results: Any) -> list[str]:
    """The same rows on another machine."""
    section = results["sections"]["resnet20"]
    rows = [
        (name, *(f"{row['drop']:.2f}" for row in section[f"{name}, seed 0, on a CPU"]))
        for name in ("agic", "gap", "picnn")
    ]
    return table(("ResNet-20, seed 0, on a CPU", *BUDGETS), rows)


def weights(results: Any) -> list[str]:
    """The members' weights over all runs, and the orders of the plans."""
    found = [
        row
        for network in ("resnet20", "resnet56")
        for seed in SEEDS
        for row in results["sections"][network][f"consensus, seed {seed}"]
    ]
    ranges = ", ".join(
        f"{min(row['weights'][name] for row in found):.2f} to {max(row['weights'][name] for row in found):.2f} ({name})"
        for name in MEMBERS
    )
    orders = [row["order"] for row in found]
    went = ", ".join(f"{orders.count(name)} by {name}" for name in dict.fromkeys(sorted(orders)))
    return [f"The weights were {ranges}. Of the {len(orders)} plans, the order was: {went}."]


def _network(results: Any, network: str) -> list[str]:
    rows = []
    for name, shown in RANKINGS.items():
        cells = [", ".join(f"{drop:.2f}" for drop in _drops(results, network, name, budget)) for budget in BUDGETS]
        rows.append((shown, *cells))
    halves = []
    for budget in BUDGETS:
        own = [_row(results, network, "consensus", budget, seed) for seed in SEEDS]
        halves.append(f"{statistics.mean((row['high'] - row['low']) / 2 for row in own):.1f}")
    rows.append(("half-width of the consensus's 95% CI", *halves))
    return table((f"{_title(network)}, seeds 0, 1, 2", *BUDGETS), rows)


def _drops(results: Any, network: str, ranking: str, budget: str) -> Sequence[float]:
    return [float(_row(results, network, ranking, budget, seed)["drop"]) for seed in SEEDS]


def _row(results: Any, network: str, ranking: str, budget: str, seed: int) -> Row:
    rows: list[Row] = results["sections"][network][f"{ranking}, seed {seed}"]
    return next(row for row in rows if row["macs"] == budget)


def _plain(machine: str) -> str:
    return machine.replace("(R)", "").replace(" Processor", "")


def _title(network: str) -> str:
    return {"resnet20": "ResNet-20", "resnet56": "ResNet-56"}[network]
