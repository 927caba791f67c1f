"""The consensus against its members, leave-one-out and the rankings to beat, reconstructed, without training.

    python -m benchmarks.consensus --minutes 60 [--only resnet20,resnet56]

Runs on the GPU where there is one.

For every ranking and three calibration seeds: 1,000 calibration images are drawn, rank, measure the sensitivities and repair;
the drop is measured on all test images at 1/1.3, 1/1.5, 1/2 and 1/3 of the MACs. Rows are kept in
benchmarks/results/consensus.json.
"""

import tempfile
import time
from collections import Counter
from pathlib import Path

from torch import Tensor

from benchmarks.sections import Case, Rows, Work, run_sections
from secateur.environment import choose_device
from secateur.explain.consensus import MEMBERS
from secateur.explain.ranking import rank_kernels
from secateur.explain.scores import RankingTask
from secateur.network.channels import find_groups
from secateur.network.evaluation import paired_drop_interval, predict
from secateur.network.model import Network
from secateur.prune import surgery
from secateur.prune.cost import measure_cost
from secateur.prune.orders import best_plan, choices, measure_orders
from secateur.prune.plan import PruningPlan, plan_pruning
from secateur.prune.repair import judging, repair
from secateur.recipe import BudgetSettings
from secateur.stages import Progress, silent

RESULTS = Path(__file__).parent / "results" / "consensus.json"
NETWORKS = ("resnet20", "resnet56")
FRACTIONS = {"1/1.3": 1 / 1.3, "1/1.5": 1 / 1.5, "1/2": 1 / 2, "1/3": 1 / 3}
SEEDS = range(3)
WITHOUT = tuple(",".join(name for name in MEMBERS if name != left) for left in MEMBERS)
RANKINGS = ("consensus", *MEMBERS, "random", "magnitude", "taylor", "fpgm", "bn-scale", "lamp", *WITHOUT, "car")


def compare(case: Case, ranking: str, seed: int) -> Rows:
    """The drop at every fraction of the MACs when a ranking chooses; the consensus's weights beside it."""
    network, test, device = case.network, case.splits.test, choose_device("auto")
    calibration = case.splits.train.sample(1000, seed)
    start = time.perf_counter()
    scores = rank_kernels(
        RankingTask(network, calibration, seed, device, scratch=_scratch(case.name, seed, ranking)), ranking
    )
    seconds = time.perf_counter() - start
    groups = find_groups(network.module, network.example(2))
    sensitivity = measure_orders(network, groups, scores, calibration, device=device)
    costs, validation = measure_cost(network), case.splits.validation
    judge = judging(network, validation, seed, device)

    def repaired(plan: PruningPlan, progress: Progress = silent) -> Network:
        cut = surgery.cut(network, plan)
        return repair(network, cut, calibration, validation=validation, seed=seed, device=device, progress=progress)[0]

    def right(one: Network) -> Tensor:
        return predict(one.copy().module.to(device), test, device=device).argmax(1) == test.labels

    whole, rows = right(network), []
    for name, fraction in FRACTIONS.items():
        budget = BudgetSettings(macs=fraction)
        plans = {
            name: plan_pruning(groups, choice.units, costs, budget, choice.sensitivity)
            for name, choice in choices(groups, scores, sensitivity).items()
        }
        plan = best_plan(plans, lambda plan, progress: judge(repaired(plan, progress)))
        small = repaired(plan)
        now = right(small)
        interval = paired_drop_interval(whole.numpy(), now.numpy(), seed)
        rows.append({
            "macs": name, "left": plan.after.macs / plan.before.macs, "seed": seed,
            "drop": 100 * float(whole.double().mean() - now.double().mean()), "low": interval.low, "high": interval.high,
            "divergence": judge(small), "order": plan.order or None, "tried": dict(plan.tried) or None,
            "ranking seconds": seconds, "weights": scores.details.get("weights"), "areas": scores.details.get("areas"),
            "groups": dict(Counter(group.decided_by for group in plan.groups if not group.locked)),
        })  # fmt: skip
    return rows


_KEPT = tempfile.TemporaryDirectory()


def _scratch(network: str, seed: int, ranking: str) -> Path:
    """Where AGIC keeps graphs and encoder for the consensuses, whose members rank on the same half; gone with the process."""
    folder = Path(_KEPT.name, network, str(seed), "together" if ranking == "consensus" or "," in ranking else ranking)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def work() -> Work:
    """Network by network, seed by seed, the consensus and its members first."""
    return {
        (network, f"{ranking}, seed {seed}"): (
            lambda case, _, network=network, ranking=ranking, seed=seed: compare(case(network), ranking, seed)
        )
        for network in NETWORKS
        for seed in SEEDS
        for ranking in RANKINGS
    }


if __name__ == "__main__":
    run_sections(__doc__, RESULTS, work, timed=False)
