"""Blocks of the page on gAP: its faithfulness and its cost."""

from collections.abc import Mapping
from typing import Any

from benchmarks.pages.blocks import table, where

RESULTS = "gap.json"
NETWORKS = {"digits": "digits", "resnet20": "ResNet-20", "resnet56": "ResNet-56", "resnet50": "ResNet-50"}
MISSING = "not measured"
Row = Mapping[str, Any]


def machine(results: Any) -> list[str]:
    """The machine of all sections."""
    return [f"Measured on {where(results)}."]


def table_1(results: Any) -> list[str]:
    """Correlation with ablation, Table 1 of the paper."""
    keys = ("AA", "MA", "AG", "MG", "AA, truth by setting to zero", "AA against the mean")
    rows = [
        (NETWORKS[network], row["pair"].replace("->", "→"), *(f"{row[key]:.2f}" for key in keys))
        for network, found in results["sections"]["table 1"].items()
        for row in found
    ]
    header = ("network", "pair", "AA", "MA", "AG", "MG", "AA, truth by zero", "`G * (F - E F)`")
    return table(header, rows, left=2)


def plans(results: Any) -> list[str]:
    """Divergence of whole plans by statistic."""
    found = results["sections"]["plans"]
    by_network = {network: {row["statistic"]: row for row in rows} for network, rows in found.items()}
    columns = [(network, key) for network in found for key in _budgets(found[network])]
    rows = [
        (
            name,
            *(
                f"{by_network[network][name][key]:.{4 if network == 'digits' else 3}f}"
                if name in by_network[network]
                else MISSING
                for network, key in columns
            ),
        )
        for name in by_network["resnet20"]
    ]
    header = ("statistic", *(f"{NETWORKS[network]}, {key.split(' ')[0]}" for network, key in columns))
    return table(header, rows)


def statistics(results: Any) -> list[str]:
    """Divergence when the lowest units of one group are removed."""
    rows = []
    for network, found in results["sections"]["statistic"].items():
        for row in found:
            cells = (row[key] for key in ("before, 0.5 kept", "after, 0.5 kept"))
            rows.append((NETWORKS[network], row["statistic"], *(f"{value:.3f}" for value in cells)))
    return table(("network", "statistic", "half of a group removed, not repaired", "reconstructed"), rows, left=2)


def curves(results: Any) -> list[str]:
    """Rankers as orders to remove kernels in."""
    found = results["sections"]["curves"]
    rows = []
    for name in dict.fromkeys(key.partition(", ")[2] for key in found):
        cells: list[str] = []
        for network in ("digits", "resnet20"):
            (row,) = found[f"{network}, {name}"]
            cells += [f"{row['deletion_area']:.3f}", f"{row['pruning_area']:.3f}", f"{row['spearman_with_truth']:.2f}"]
        rows.append((name, *cells, f"{found[f'resnet20, {name}'][0]['seconds']:.1f}"))
    header = (
        "ranker", "digits: deletion", "pruning", "rank correlation with the truth", "ResNet-20: deletion", "pruning",
        "rank correlation", "seconds, ResNet-20",
    )  # fmt: skip
    return table(header, rows)


def who_deletes_better(results: Any) -> list[str]:
    """The rankers whose deletion curve falls faster than gAP's."""
    parts = []
    for network in ("digits", "resnet20"):
        found = {
            key.partition(", ")[2]: row
            for key, (row,) in results["sections"]["curves"].items()
            if key.startswith(network)
        }
        better = [name for name, row in found.items() if row["deletion_area"] < found["gap"]["deletion_area"]]
        parts.append(f"{len(better)} on {NETWORKS[network]} ({', '.join(better)})")
    return [f"Rankers whose deletion curve falls faster than gAP's: {'; '.join(parts)}."]


def surrogate(results: Any) -> list[str]:
    """How often the network predicts the same with k kernels a stage."""
    rows = []
    for network, found in results["sections"]["surrogate"].items():
        for baseline in dict.fromkeys(row["baseline"] for row in found):
            own = {str(row["k"]): row for row in found if row["baseline"] == baseline}
            cells = [f"{100 * row['agreement']:.1f}%" for row in own.values()]
            last = list(own.values())[-1]
            rows.append((NETWORKS[network], baseline, *cells, f"{100 * last['random_agreement']:.1f}%"))
    first = results["sections"]["surrogate"]["digits"]
    ks = list(dict.fromkeys(str(row["k"]) for row in first))
    return table(("network", "baseline", *(f"k = {k}" for k in ks), f"k = {ks[-1]} at random"), rows, left=2)


def degree(results: Any) -> list[str]:
    """The discriminative degree by stage, eq. 13."""
    rows = [
        (NETWORKS[network], row["stage"], f"{row['degree']:.2f}", str(row["kernels"]), f"{row['floor']:.1f}")
        for network, found in results["sections"]["degree"].items()
        for row in found
    ]
    return table(("network", "stage", "degree", "kernels", "floor"), rows, left=2)


def randomised(results: Any) -> list[str]:
    """Correlation with the original scores after randomising weights or labels."""
    labels = {row["ranker"]: row for row in results["sections"]["permuted labels"]["digits"]}
    weights = {
        network: {row["ranker"]: row for row in found} for network, found in results["sections"]["randomised"].items()
    }
    rows = []
    for name in weights["digits"]:
        cells = [
            f"{weights[network][name]['all_random']:.2f}" if name in weights[network] else MISSING
            for network in weights
        ]
        label = labels.get(name)
        cells += [f"{label['permuted']:.2f}", f"{label['control']:.2f}"] if label else [MISSING, MISSING]
        rows.append((name, *cells))
    header = (
        "ranker", *(f"{NETWORKS[network]}: all weights re-initialised" for network in weights),
        "digits: permuted labels", "digits: true labels in another order",
    )  # fmt: skip
    return table(header, rows)


def speed(results: Any) -> list[str]:
    """The cost of gAP, compared with conductance and ablation."""
    rows = []
    for network, (row,) in results["sections"]["speed"].items():
        ablation = f"{row['one_by_one_over_gap']:.0f} ({row['kernels']} kernels)" if "kernels" in row else MISSING
        rows.append(
            (
                f"{NETWORKS[network]}, batch {row['batch']}",
                f"{row['gap_over_training_pass']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})",
                f"{row['conductance_over_gap']:,.0f}",
                ablation,
                f"{row['batched_ablation_over_gap']:.0f}" if "batched_ablation_over_gap" in row else MISSING,
            )
        )
    header = (
        "network", "gAP over a training pass (lowest to highest)", "captum's Conductance over gAP",
        "ablation one by one over gAP", "batched ablation over gAP",
    )  # fmt: skip
    return table(header, rows)


def _budgets(rows: Any) -> list[str]:
    return [key for key in rows[0] if key.endswith("of the MACs")]
