"""The consensus compared with its members, a leave-one-out ablation and baseline rankings, reconstructed, without training.

    python -m benchmarks.consensus --minutes 60 [--only resnet20,resnet56]

Runs on the GPU if there is one.

For every ranking and three calibration seeds, 1,000 calibration images are sampled for ranking, sensitivities and repair; a
consensus tries every order's cut on validation images; the drop is measured on all test images at 1/1.3, 1/1.5, 1/2 and 1/3
of the MACs. Rows are stored in benchmarks/results/consensus.json.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from benchmarks.kept_rows import Case, Rows, Work, run_sections
from secateur.common.environment import choose_device
from secateur.common.files import sha256_json
from secateur.explain.consensus import MEMBERS
from secateur.explain.ranking import rank_kernels
from secateur.explain.scores import KernelScores, RankingTask
from secateur.explain.unit_scores import UnitScores
from secateur.network.channels.cut import cut_to_json
from secateur.network.channels.follow import find_groups
from secateur.network.evaluation import predict
from secateur.network.intervals import paired_drop_interval
from secateur.network.network import Network
from secateur.prune import surgery
from secateur.prune.cost import measure_cost
from secateur.prune.plan import PruningPlan
from secateur.prune.planning import plan_pruning
from secateur.prune.repair.judging import judging
from secateur.prune.repair.repair import repair
from secateur.prune.settings import BudgetSettings
from secateur.prune.widths.measure_sensitivity import measure_sensitivity
from secateur.prune.widths.ranking_choice import best_orders, best_plan, choices, unit_orders
from secateur.prune.widths.sensitivity import Sensitivity

RESULTS = Path(__file__).parent / "results" / "consensus.json"
NETWORKS = ("resnet20", "resnet56")
FRACTIONS = {"1/1.3": 1 / 1.3, "1/1.5": 1 / 1.5, "1/2": 1 / 2, "1/3": 1 / 3}
SEEDS = range(3)
WITHOUT = tuple(",".join(name for name in MEMBERS if name != left) for left in MEMBERS)
RANKINGS = ("consensus", *MEMBERS, "random", "magnitude", "taylor", "fpgm", "bn-scale", "lamp", *WITHOUT, "car")


class Judge:
    """One network with one calibration set, and the measurements of orders and cuts that rows share."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case, self.seed, self.device = case, seed, choose_device("auto")
        self.network, self.calibration = case.network, case.splits.train.sample(1000, seed)
        self.groups, self.costs = find_groups(self.network.module, self.network.example(2)), measure_cost(self.network)
        self.divergence = judging(self.network, case.splits.validation, seed, self.device)
        self.whole = self.right(self.network)
        self._sensitivities: dict[str, Sensitivity] = {}
        self._repaired: dict[str, Network] = {}

    def rank(self, ranking: str) -> KernelScores:
        """AGIC's graphs and encoder are cached for the consensuses, whose members rank on the same half, until the process
        ends.
        """
        together = ranking == "consensus" or "," in ranking
        folder = Path(_KEPT.name, self.case.name, str(self.seed), "together" if together else ranking)
        folder.mkdir(parents=True, exist_ok=True)
        return rank_kernels(
            RankingTask(self.network, self.calibration, self.seed, self.device, scratch=folder), ranking
        )

    def sensitivity(self, scores: KernelScores) -> Sensitivity:
        """The result of :func:`~secateur.prune.widths.ranking_choice.measure_orders`."""
        orders = unit_orders(self.groups, scores)
        measured = {method: self._measured(units) for method, units in orders.items()}
        return measured[scores.method] if len(measured) == 1 else best_orders(measured)

    def _measured(self, units: Mapping[str, UnitScores]) -> Sensitivity:
        key = sha256_json({group: scores.values.tolist() for group, scores in units.items()})
        if key not in self._sensitivities:
            own = [group for group in self.groups if group.name in units]
            self._sensitivities[key] = measure_sensitivity(
                self.network, own, units, self.calibration, device=self.device
            )
        return self._sensitivities[key]

    def repaired(self, plan: PruningPlan) -> Network:
        key = sha256_json(cut_to_json(plan.cut))
        if key not in self._repaired:
            self._repaired[key], _ = repair(
                self.network, surgery.cut(self.network, plan), self.calibration,
                validation=self.case.splits.validation, seed=self.seed, device=self.device,
            )  # fmt: skip
        return self._repaired[key]

    def right(self, network: Network) -> Tensor:
        """Which test images a network classifies correctly."""
        test = self.case.splits.test
        return predict(network.copy().module.to(self.device), test, device=self.device).argmax(1) == test.labels


_KEPT = tempfile.TemporaryDirectory()
_judges: dict[tuple[str, int], Judge] = {}


def compare(case: Case, ranking: str, seed: int) -> Rows:
    """The drop at every fraction of the MACs by one ranking; for a consensus, also its weights and tries."""
    if (case.name, seed) not in _judges:
        _judges[case.name, seed] = Judge(case, seed)
    judge, rows = _judges[case.name, seed], []
    start = time.perf_counter()
    scores = judge.rank(ranking)
    seconds = time.perf_counter() - start
    known = choices(judge.groups, scores, judge.sensitivity(scores))
    for name, fraction in FRACTIONS.items():
        plans = {
            order: plan_pruning(judge.groups, one.units, judge.costs, BudgetSettings(macs=fraction), one.sensitivity)
            for order, one in known.items()
        }
        plan = best_plan(plans, lambda plan, progress: judge.divergence(judge.repaired(plan)))
        small = judge.repaired(plan)
        now = judge.right(small)
        interval = paired_drop_interval(judge.whole.numpy(), now.numpy(), seed)
        rows.append({
            "macs": name, "left": plan.after.macs / plan.before.macs, "seed": seed,
            "drop": 100 * float(judge.whole.double().mean() - now.double().mean()),
            "low": interval.low, "high": interval.high,
            "divergence": judge.divergence(small), "order": plan.order or None, "tried": dict(plan.tried) or None,
            "ranking seconds": seconds, "weights": scores.details.get("weights"), "areas": scores.details.get("areas"),
            "groups": dict(Counter(group.decided_by for group in plan.groups if not group.locked)),
        })  # fmt: skip
    return rows


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
