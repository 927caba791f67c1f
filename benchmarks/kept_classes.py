"""Pruning for some of the classes: a network cut for three classes compared with one that was cut for all ten.

    python -m benchmarks.kept_classes --minutes 20

Both have half of the MACs, ranked by gAP and reconstructed without training; both are evaluated on the test images of the three
classes with only their scores. Rows are stored in benchmarks/results/kept_classes.json.
"""

from pathlib import Path

from torch import Tensor

from benchmarks.kept_rows import Case, Rows, Work, run_sections
from secateur.explain.registry import get_ranker
from secateur.explain.scores import RankingTask
from secateur.explain.unit_scores import score_units
from secateur.network.channels.follow import find_groups
from secateur.network.evaluation import predict
from secateur.network.images.images import Images
from secateur.network.intervals import paired_drop_interval
from secateur.network.kept_classes import restrict_images, restrict_network
from secateur.network.network import Network
from secateur.prune import surgery
from secateur.prune.cost import measure_cost
from secateur.prune.planning import plan_pruning
from secateur.prune.repair.repair import repair
from secateur.prune.settings import BudgetSettings
from secateur.prune.widths.measure_sensitivity import measure_sensitivity

RESULTS = Path(__file__).parent / "results" / "kept_classes.json"
KEPT = ("cat", "dog", "horse")
CALIBRATION = 1000


def halved(network: Network, calibration: Images, validation: Images, seed: int) -> tuple[Network, float]:
    """The network cut to half of the MACs and reconstructed, and the share of the MACs that is left."""
    groups = find_groups(network.module, network.example(2))
    units = score_units(groups, get_ranker("gap").score(RankingTask(network, calibration, seed)))
    sensitivity = measure_sensitivity(network, groups, units, calibration)
    plan = plan_pruning(groups, units, measure_cost(network), BudgetSettings(macs=0.5), sensitivity)
    small, _ = repair(network, surgery.cut(network, plan), calibration, "reconstruct", validation=validation, seed=seed)
    return small, plan.after.macs / plan.before.macs


def compare(case: Case) -> Rows:
    """A row for the original, the network cut for all classes and the one cut for the kept ones."""
    kept = tuple(case.network.class_names.index(name) for name in KEPT)
    splits = restrict_images(case.splits, kept)
    test = splits.test

    def right(network: Network) -> Tensor:
        scores = predict(network.module, test)
        return (scores if scores.shape[1] == len(kept) else scores[:, list(kept)]).argmax(1) == test.labels

    calibration = splits.train.sample(CALIBRATION, case.seed)
    of_all, left_of_all = halved(case.network, case.calibration, case.splits.validation, case.seed)
    own, left = halved(restrict_network(case.network, kept), calibration, splits.validation, case.seed)
    found = {
        "original": right(case.network),
        "cut for all classes": right(of_all),
        "cut for the kept classes": right(own),
    }
    reference = found["cut for all classes"]
    rows = []
    for state, values in found.items():
        gain = paired_drop_interval(values.numpy(), reference.numpy(), case.seed)
        rows.append({
            "state": state, "classes": ", ".join(KEPT), "images": len(test),
            "macs": {"original": 1.0, "cut for all classes": left_of_all}.get(state, left),
            "accuracy": 100 * float(values.double().mean()),
            "points above the cut for all": 100 * float(values.double().mean() - reference.double().mean()),
            "low": gain.low, "high": gain.high,
        })  # fmt: skip
    return rows


def work() -> Work:
    return {("kept classes", name): (lambda case, seed, name=name: compare(case(name))) for name in ("resnet20",)}


if __name__ == "__main__":
    run_sections(__doc__, RESULTS, work)
