"""Evaluate gAP against ablation: python -m benchmarks.gap [--minutes 60]

On the digits network and on ResNet-20 and ResNet-56 for CIFAR-10 as JPEG (from SECATEUR_SHARED, default ../shared): Table 1
of Cheng et al. 2023 (correlation with ablation), the cost of ranking compared with a training pass, captum's Conductance and
ablation, the sparse surrogate, the discriminative degree, deletion curves of all rankers, randomisation, and which statistic
best predicts the cost of a cut. Results are on validation images; no test image is read. Rows in the results file are not
measured again.
"""

from collections.abc import Callable
from pathlib import Path

from benchmarks.gap.correlation import table_one
from benchmarks.gap.cutting import plans, statistic
from benchmarks.gap.faithfulness import curves, permuted, randomised
from benchmarks.gap.speed import speed
from benchmarks.gap.surrogate import degree, surrogate
from benchmarks.kept_rows import Case, Rows, Work, run_sections

RESULTS = Path(__file__).parents[1] / "results" / "gap.json"
NETWORKS = ("digits", "resnet20", "resnet56")
RANKERS = (
    "gap", "gap-hierarchical", "conductance", "internal-influence", "integrated-gradients", "deep-lift", "lrp", "taylor",
    "magnitude", "car", "random",
)  # fmt: skip


def wanted() -> Work:
    """Every section with its subject, in the order in which they are run."""
    work: dict[tuple[str, str], Callable[[Callable[[str], Case], int], Rows]] = {}
    for name in NETWORKS:
        work["table 1", name] = lambda case, _, name=name: table_one(case(name))
    for name in ("resnet20", "resnet56", "resnet50"):
        work["speed", name] = lambda _, seed, name=name: speed(name, seed)
    for name in NETWORKS[:2]:
        work["statistic", name] = lambda case, _, name=name: statistic(case(name))
        work["plans", name] = lambda case, _, name=name: plans(case(name))
    for name in NETWORKS[:2]:
        for ranker in RANKERS:
            work["curves", f"{name}, {ranker}"] = lambda case, _, name=name, ranker=ranker: curves(case(name), ranker)
    for name in NETWORKS:
        work["degree", name] = lambda case, _, name=name: degree(case(name))
        work["surrogate", name] = lambda case, _, name=name: surrogate(case(name))
    for name in NETWORKS[:2]:
        work["randomised", name] = lambda case, _, name=name: randomised(case(name))
    work["permuted labels", "digits"] = lambda case, _: permuted(case("digits"))
    return work


if __name__ == "__main__":
    run_sections(__doc__, RESULTS, wanted)
