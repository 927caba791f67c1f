"""Evaluate the claims of AGIC: python -m benchmarks.agic [--minutes 60] [--only classifier,cutting]

On the digits network and ResNet-20 for CIFAR-10 as JPEG (from SECATEUR_SHARED, default ../shared): whether the class of an
image can be predicted from its attribution graph, compared with controls; the cost of cutting the lowest, highest and random
kernels, compared with gAP's ranking; the agreement of seeds and the cost of AGIC. Training graphs come from calibration images;
results are on test images, and nothing is chosen on them. Rows in the results file are not measured again.
"""

import itertools
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.kept_rows import Case, Rows, Work, run_sections
from secateur.common.files import read_json
from secateur.explain.agic.build import GraphSettings, build_graphs
from secateur.explain.agic.encoder import Embeddings, EncoderSettings, GraphEncoder, Standardiser, embed, pretrain
from secateur.explain.agic.graphs import AttributionGraphs
from secateur.explain.agic.ranker import score_agic
from secateur.explain.faithfulness.curves import faithfulness_curves
from secateur.explain.faithfulness.graph_classifier import READOUTS, ClassifierSettings, train_classifier
from secateur.explain.faithfulness.graph_controls import CONTROLS, ControlledGraphs
from secateur.explain.faithfulness.readout_scoring import ScoringSettings, kernel_scores, train_scoring
from secateur.explain.ranking import rank_kernels
from secateur.explain.scores import KernelScores, RankingTask
from secateur.explain.settings import AgicSettings
from secateur.explain.unit_scores import score_units
from secateur.network.channels.cut import cut_of
from secateur.network.channels.follow import find_groups
from secateur.network.graph.feature_points import find_stages
from secateur.network.graph.topology import IMAGE, find_topology
from secateur.network.graph.trace import trace
from secateur.network.images.images import Images
from secateur.network.intervals import wilson_interval
from secateur.network.network import Network
from secateur.prune import surgery
from secateur.prune.cost import measure_cost
from secateur.prune.plan import PruningPlan
from secateur.prune.repair.repair import repair

RESULTS = Path(__file__).parent / "results" / "agic.json"
NETWORKS = ("resnet20", "digits")
HELD_OUT, PERMUTATIONS = 1000, 10
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
REPAIRED = {"none": SHARES, "bn": (0.3, 0.5), "reconstruct": (0.3, 0.5)}
RANDOM_SEEDS = 20
JUDGED, REPAIR_IMAGES = 2000, 256


def classifier(case: Case, control: str) -> Rows:
    """Accuracy on held-out graphs of a classifier on the frozen encoder, for one control and both readouts."""
    start = time.perf_counter()
    training, held_out = embeddings(case, control)
    seconds = time.perf_counter() - start
    rows = []
    for readout, target in itertools.product(READOUTS, ("class", "prediction")):
        wanted = (
            (training.labels, held_out.labels) if target == "class" else (training.predictions, held_out.predictions)
        )
        for permuted in (False, True):
            if permuted and (control != "full" or target != "class"):
                continue
            runs = range(PERMUTATIONS if permuted else 3)
            correct = torch.stack([_right(training, held_out, wanted, readout, seed, permuted) for seed in runs])
            interval = wilson_interval(int(correct[0].sum()), correct.shape[1])
            rows.append({
                "network": case.name, "graphs": "permuted labels" if permuted else control,
                "readout": readout, "target": target,
                "accuracy": 100 * float(correct.double().mean()), "low": interval.low, "high": interval.high,
                "seeds": len(runs), "seeds_deviation": 100 * float(correct.double().mean(1).std()),
                "training": len(training), "held_out": len(held_out), "seconds": seconds,
                "correct": "".join(str(int(value)) for value in correct[0].tolist()),
            })  # fmt: skip
    return rows


def _right(
    training: Embeddings, held_out: Embeddings, wanted: tuple[Tensor, Tensor], readout: str, seed: int, permuted: bool
) -> Tensor:
    targets = wanted[0]
    if permuted:
        targets = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))]
    found = train_classifier(training, targets, ClassifierSettings(readout=readout, seed=seed))
    return found.predict(held_out).argmax(1) == wanted[1]


def embeddings(case: Case, control: str) -> tuple[Embeddings, Embeddings]:
    """Embeddings of calibration and of test images, by an encoder pretrained on the former's graphs under a control."""
    last = _last_stage(case.network)
    with tempfile.TemporaryDirectory() as folder:
        parts = []
        for name, images in (
            ("training", case.calibration),
            ("held-out", case.splits.test.sample(HELD_OUT, case.seed)),
        ):
            graphs = _graphs(case, images, Path(folder) / name)
            parts.append(
                ControlledGraphs(
                    graphs, control, graphs.layout, last if control == "without_classes" else (), case.seed
                )
            )
        standardiser = Standardiser.fit(parts[0])
        encoder = GraphEncoder(parts[0].layout, standardiser.features, EncoderSettings(seed=case.seed))
        pretrain(encoder, standardiser, parts[0])
        training, held_out = (embed(encoder, standardiser, part) for part in parts)
    return training, held_out


def _graphs(case: Case, images: Images, folder: Path) -> AttributionGraphs:
    return build_graphs(case.network, images, case.calibration, folder, GraphSettings(seed=case.seed))


def _last_stage(network: Network) -> list[str]:
    """The sites after the second-last stage."""
    view = trace(network.module, network.example())
    stages = find_stages(view, network.example())
    order = {node: place for place, node in enumerate(view.graph.nodes)}
    sites = find_topology(view, network.example()).sites
    return [name for name, site in sites.items() if site.kind != IMAGE and order[site.node] > order[stages[-2].node]]


def claim(case: Case) -> Rows:
    """The paper's claim: full graphs compared with graphs of permuted kernels, and with graphs without links.

    Computed from the rows of ``classifier``, image by image, for the first seed.
    """
    parts = read_json(RESULTS)["sections"]["classifier"]
    rows = [row for about, own in parts.items() if about.startswith(f"{case.name}, ") for row in own]
    found = []
    for readout, target, other in itertools.product(READOUTS, ("class", "prediction"), ("shuffled", "nodes_only")):
        pair = [
            next(row for row in rows if (row["graphs"], row["readout"], row["target"]) == (graphs, readout, target))
            for graphs in ("full", other)
        ]
        first, second = (numpy.array([int(digit) for digit in row["correct"]]) for row in pair)
        generator = numpy.random.default_rng(case.seed)
        drawn = generator.integers(0, len(first), (2000, len(first)))
        low, high = numpy.percentile(100 * (first - second)[drawn].mean(1), [2.5, 97.5])
        found.append({
            "network": case.name, "readout": readout, "target": target, "full minus": other,
            "points": 100 * float((first - second).mean()), "low": float(low), "high": float(high),
        })  # fmt: skip
    return found


class Cutter:
    """Cuts a share of the units inside every block and measures the accuracy on test images."""

    def __init__(self, case: Case) -> None:
        self.network, self.costs = case.network, measure_cost(case.network)
        self.groups = find_groups(case.network.module, case.network.example(2))
        inside = [group for group in self.groups if not group.locked and not group.stream]
        self.inside = inside or [group for group in self.groups if not group.locked]
        self.judged = case.splits.test.sample(JUDGED, case.seed)
        self.repairing = case.calibration.sample(REPAIR_IMAGES, case.seed + 1)

    def units(self, scores: KernelScores) -> dict[str, Tensor]:
        return {name: units.values for name, units in score_units(self.inside, scores).items()}

    def accuracy(self, units: dict[str, Tensor], share: float, kind: str, highest: bool = False) -> float:
        removed = {
            group.name: units[group.name]
            .argsort(descending=highest, stable=True)[: round(share * group.units)]
            .tolist()
            for group in self.inside
        }
        cut = cut_of(self.groups, removed)
        plan = PruningPlan("macs", 1.0, self.costs.of({}), self.costs.of_cut(cut), "", (), cut)
        network = surgery.cut(self.network, plan)
        if kind != "none":
            network, _ = repair(self.network, network, self.repairing, kind)
        return self.of(network)

    def of(self, network: Network) -> float:
        with torch.no_grad():
            right = [(network.logits(batch).argmax(1) == labels).sum() for batch, labels in self.judged.batches(250)]
        return 100 * float(torch.stack(right).sum()) / len(self.judged)


def cutting(case: Case, which: str) -> Rows:
    """Accuracy after cutting shares of the kernels inside blocks by one ranking."""
    cutter = Cutter(case)
    task = RankingTask(case.network, case.calibration, case.seed)
    if which == "random":
        drawn = [
            rank_kernels(RankingTask(case.network, case.calibration, seed), "random") for seed in range(RANDOM_SEEDS)
        ]
    elif which == "agic by readout":
        drawn = [_by_readout(case)]
    else:
        drawn = [rank_kernels(task, which.removesuffix(", highest first"))]
    rows = []
    for kind, shares in REPAIRED.items():
        if kind == "bn" and which == "random":
            continue
        for share in shares:
            found = [
                cutter.accuracy(cutter.units(scores), share, kind, which.endswith("highest first")) for scores in drawn
            ]
            rows.append({
                "network": case.name, "ranking": which, "share": share, "repair": kind,
                "accuracy": statistics.median(found), "worst": min(found), "best": max(found), "seeds": len(found),
                "whole": cutter.of(case.network), "images": len(cutter.judged),
            })  # fmt: skip
    return rows


def _by_readout(case: Case) -> KernelScores:
    """The scoring network that reads each layer's embeddings instead of following the edges."""
    training, _ = embeddings(case, "full")
    layers, _ = kernel_scores(train_scoring(training, ScoringSettings(seed=case.seed)), training)
    return KernelScores("agic by readout", "share of keep rates", layers)


def deletion(case: Case, ranker: str) -> Rows:
    """The deletion curve as in benchmarks.gap, on validation images."""
    scores = rank_kernels(RankingTask(case.network, case.calibration, case.seed), ranker)
    found = faithfulness_curves(case.network, case.judged, scores)
    return [{
        "network": case.name, "ranker": ranker, "deletion_area": found.deletion.area, "pruning_area": found.pruning.area,
        "deletion": list(found.deletion.accuracy), "images": found.images,
    }]  # fmt: skip


def seeds(case: Case, images: int, encoder_steps: int) -> Rows:
    """Spearman's correlation of the scores of three seeds, mean over layers and pairs, with the same calibration images."""
    settings = AgicSettings(images=images, encoder_steps=encoder_steps)
    found, seconds = [], []
    for seed in range(3):
        start = time.perf_counter()
        found.append(score_agic(RankingTask(case.network, case.calibration, seed, agic=settings)).layers)
        seconds.append(time.perf_counter() - start)
    each = [
        float(spearmanr(first[layer], second[layer])[0])
        for first, second in itertools.combinations(found, 2)
        for layer in first
    ]
    return [{
        "network": case.name, "images": images, "encoder_steps": encoder_steps, "spearman": statistics.fmean(each),
        "lowest_layer": min(each), "seconds": statistics.median(seconds),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }]  # fmt: skip


def wanted() -> Work:
    """All rows, the most informative first."""
    work: dict[tuple[str, str], Callable[[Callable[[str], Case], int], Rows]] = {}
    for name in NETWORKS:
        for ranking in ("agic", "agic, highest first", "gap", "shapley", "random", "agic by readout"):
            work["cutting", f"{name}, {ranking}"] = lambda case, _, n=name, r=ranking: cutting(case(n), r)
        for control in CONTROLS:
            work["classifier", f"{name}, {control}"] = lambda case, _, n=name, c=control: classifier(case(n), c)
        work["claim", name] = lambda case, _, n=name: claim(case(n))
        for images, steps in ((1000, 300), (1000, 100), (300, 300)):
            work["seeds", f"{name}, {images} images, {steps} steps"] = lambda case, _, n=name, i=images, s=steps: seeds(
                case(n), i, s
            )
        for ranker in ("agic", "shapley", "gap", "random"):
            work["deletion", f"{name}, {ranker}"] = lambda case, _, n=name, r=ranker: deletion(case(n), r)
    return work


if __name__ == "__main__":
    run_sections(__doc__, RESULTS, wanted)
