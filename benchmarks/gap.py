"""gAP held to the truth: python -m benchmarks.gap [--minutes 60]

On the digits network and on ResNet-20 and ResNet-56 for CIFAR-10 as JPEG (from SECATEUR_SHARED, default ../shared): Table 1
of Cheng et al. 2023 (correlation with the truth by ablation), what ranking costs beside a training pass, captum's Conductance
and ablation, the sparse surrogate, the discriminative degree, deletion curves of all rankers, randomisation, and which
statistic foretells best what a cut costs. Validation images judge; no test image is read. Rows are kept in the results file
and not run again.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import models

from benchmarks.kept_rows import SHARED, Case, Work, run_sections
from secateur.common.environment import seed_everything
from secateur.explain.faithfulness.ablation import ablation_drops, ablation_truth
from secateur.explain.faithfulness.curves import (
    correlate,
    discriminative_degree,
    faithfulness_curves,
    surrogate_agreement,
)
from secateur.explain.faithfulness.randomisation import cascading_randomisation, label_permutation
from secateur.explain.gap.contributions import STATISTICS, contributions
from secateur.explain.gap.decisions import ClassDecision
from secateur.explain.gap.decomposition import Decomposer
from secateur.explain.gap.levels import DecompositionSettings
from secateur.explain.gap.near_duplicates import Selection
from secateur.explain.ranking import rank_kernels
from secateur.explain.scores import KernelScores, RankingTask
from secateur.explain.unit_scores import UnitScores, score_units
from secateur.network.channels.cut import cut_of
from secateur.network.channels.follow import find_groups
from secateur.network.evaluation import divergence
from secateur.network.graph.execution import output_node, run_graph
from secateur.network.graph.segment import Segment
from secateur.network.graph.trace import reading_nodes, trace
from secateur.network.hooks import frozen, pick_logits
from secateur.network.images.images import Images
from secateur.network.load import load_model
from secateur.network.network import Network
from secateur.network.settings import ModelSettings
from secateur.network.training import TrainingSettings
from secateur.prune import surgery
from secateur.prune.cost import measure_cost
from secateur.prune.plan import PruningPlan, plan_pruning
from secateur.prune.repair.repair import repair
from secateur.prune.settings import BudgetSettings
from secateur.prune.widths.sensitivity import measure_sensitivity

RESULTS = Path(__file__).parent / "results" / "gap.json"
NETWORKS = ("digits", "resnet20", "resnet56")
RANKERS = (
    "gap", "gap-hierarchical", "conductance", "internal-influence", "integrated-gradients", "deep-lift", "lrp", "taylor",
    "magnitude", "car", "random",
)  # fmt: skip
EXPLAINED, DECISIONS = 64, 200
RUNS = 5


def table_one(case: Case) -> list[dict[str, Any]]:
    """Pearson's correlation with the truth by ablation, mean over decisions, for every pair of stages."""
    network = case.network
    inputs, _ = next(case.judged.batches(EXPLAINED))
    decomposer = Decomposer(network, DecompositionSettings())
    view, stages = decomposer.view, list(reversed(decomposer.points))
    found = decomposer(inputs)
    with torch.no_grad():
        logits = network.logits(inputs)
    target, name = output_node(view), "T"
    decisions = torch.stack([torch.arange(len(inputs)), logits.argmax(1)], 1)
    generator = torch.Generator().manual_seed(case.seed)
    rows = []
    for point, level in zip(stages, found.levels, strict=True):
        average = _average(view, point.node, case.calibration)
        truth = ablation_drops(view, point.node, target, inputs, decisions, average)
        values, gradient = _maps(view, point.node, target, inputs, decisions)
        activation = gradient * values
        estimates = {
            "AA": activation.mean((2, 3)),
            "MA": activation.amax((2, 3)),
            "AG": gradient.mean((2, 3)),
            "MG": gradient.amax((2, 3)),
            "AA against the mean": (gradient * (values - average.view(1, -1, 1, 1))).mean((2, 3)),
        }
        row: dict[str, Any] = {"pair": f"{name} -> {point.name}", "decisions": len(decisions)}
        for which, estimate in estimates.items():
            each = [correlate(*pair).pearson for pair in zip(estimate, truth, strict=True)]
            each = [value for value in each if value == value]
            row[which] = statistics.fmean(each) if each else None
            row[f"{which}, deviation"] = statistics.stdev(each) if len(each) > 1 else None
        emptied = ablation_drops(view, point.node, target, inputs, decisions, torch.zeros_like(average))
        each = [correlate(*pair).pearson for pair in zip(estimates["AA"], emptied, strict=True)]
        row["AA, truth by setting to zero"] = statistics.fmean(value for value in each if value == value)
        rows.append(row)
        columns = torch.stack([level.image, level.kernel, level.row, level.column], 1)
        chosen = torch.randperm(len(columns), generator=generator)[:DECISIONS]
        target, name, decisions = point.node, point.name, columns[chosen]
    return rows


def _average(view: Any, node: Any, images: Images) -> Tensor:
    with torch.no_grad(), frozen(view):
        sums = [run_graph(view, batch, [node])[node].mean((2, 3)) for batch, _ in images.batches(128)]
    return torch.cat(sums).mean(0)


def _maps(view: Any, source: Any, target: Any, inputs: Tensor, decisions: Tensor) -> tuple[Tensor, Tensor]:
    """F and G of a source's maps for each decision, ``[decisions, C, H, W]``."""
    segment = Segment(view, source, [target])
    with frozen(view):
        with torch.no_grad():
            known = run_graph(view, inputs, [source, *segment.reads])
        values = known[source].index_select(0, decisions[:, 0]).requires_grad_()
        (output,) = segment.run(values, inputs, known, decisions[:, 0])
        output = output if isinstance(output, Tensor) and output.dim() == 4 else pick_logits(output)
        chosen = output[(torch.arange(len(decisions)), *decisions[:, 1:].T)]
        (gradient,) = torch.autograd.grad(chosen.sum(), values)
    return values.detach(), gradient


def surrogate(case: Case) -> list[dict[str, Any]]:
    """Agreement of the network reduced to the k most important kernels of each stage, for each image.

    The others give what the contributions are measured against: zero, or their mean. Beside it kernels drawn at random.
    """
    images = case.splits.validation.sample(200, case.seed)
    rows = []
    for baseline in ("zero", "mean"):
        for label, widths in _surrogate_widths(case):
            most = max(widths)
            settings = DecompositionSettings(selection=Selection(top=most, overlap=1.0), most=most)
            decomposer = Decomposer(case.network, settings)
            if baseline == "mean":
                decomposer.subtract_averages(case.calibration, 128)
            points = decomposer.points
            kept: list[list[Tensor]] = [[] for _ in points]
            chance: list[list[Tensor]] = [[] for _ in points]
            generator = torch.Generator().manual_seed(case.seed)
            for batch, _ in images.batches(50):
                found = decomposer(batch)
                for index, (point, width) in enumerate(zip(points, widths, strict=True)):
                    importance = found.importance[point.name]
                    kept[index].append(_top(importance, width))
                    chance[index].append(_top(torch.rand(importance.shape, generator=generator), width))
            chosen, drawn = (
                surrogate_agreement(decomposer.view, points, [torch.cat(part) for part in parts], images, fill=baseline)
                for parts in (kept, chance)
            )
            rows.append({
                "baseline": baseline, "k": label, "kernels": list(widths), "of": [point.channels for point in points],
                "agreement": chosen.agreement, "accuracy": chosen.accuracy,
                "surrogate_accuracy": chosen.surrogate_accuracy, "random_agreement": drawn.agreement, "images": len(images),
            })  # fmt: skip
    return rows


def _surrogate_widths(case: Case) -> Iterator[tuple[str, tuple[int, ...]]]:
    widths = [point.channels for point in Decomposer(case.network).points]
    for part in (16, 8, 4, 2):
        yield f"1/{part}", tuple(max(1, width // part) for width in widths)
    yield "16", tuple(min(16, width) for width in widths)


def _top(values: Tensor, count: int) -> Tensor:
    mask = torch.zeros_like(values, dtype=torch.bool)
    return mask.scatter_(1, values.topk(count, dim=1).indices, True)


def degree(case: Case) -> list[dict[str, Any]]:
    """The discriminative degree by stage: mean over the kernels that were kept at least ten times."""
    decomposer = Decomposer(case.network)
    classes = len(case.network.class_names)
    counts = {point.name: torch.zeros(classes, point.channels, dtype=torch.int64) for point in decomposer.points}
    images = case.splits.validation.sample(500, case.seed)
    for batch, labels in images.batches(50):
        for level in decomposer(batch, ClassDecision(labels)).levels:
            counts[level.point.name].index_add_(0, labels, level.kept(len(labels)))
    rows = []
    for point in decomposer.points:
        often = counts[point.name].sum(0) >= 10
        found = discriminative_degree(counts[point.name])[often]
        rows.append(
            {
                "stage": point.name,
                "degree": float(found.mean()),
                "kernels": int(often.sum()),
                "floor": 1 / classes,
                "images": len(images),
            }
        )
    return rows


def curves(case: Case, ranker: str) -> list[dict[str, Any]]:
    """Deletion and pruning curves of one ranker on validation images, and what ranking took."""
    start = time.perf_counter()
    scores = rank_kernels(RankingTask(case.network, case.calibration, case.seed), ranker)
    seconds = time.perf_counter() - start
    found = faithfulness_curves(case.network, case.judged, scores)
    truth = ablation_truth(case.network, case.judged.subset(torch.arange(64))).statistic("root_mean_square")
    agreements = [correlate(scores.layers[layer], values) for layer, values in truth.items() if layer in scores.layers]
    spearman = [value.spearman for value in agreements if value.spearman == value.spearman]
    return [{
        "ranker": ranker, "deletion_area": found.deletion.area, "pruning_area": found.pruning.area,
        "deletion": list(found.deletion.accuracy), "pruning": list(found.pruning.accuracy), "images": found.images,
        "spearman_with_truth": statistics.fmean(spearman) if spearman else None, "details": dict(scores.details),
        "seconds": seconds,
    }]  # fmt: skip


def randomised(case: Case) -> list[dict[str, Any]]:
    """Spearman of gAP's scores with the original's, after every layer from the head down has fresh weights."""
    images = case.calibration.subset(torch.arange(min(256, len(case.calibration))))
    rows = []
    for ranker in ("gap", "gap-hierarchical", "magnitude", "random"):

        def rank(network: Network, ranker: str = ranker) -> Any:
            return rank_kernels(RankingTask(network, images, case.seed), ranker).layers

        steps = cascading_randomisation(case.network, rank, seed=case.seed)
        row = {"ranker": ranker, "steps": {step.layer: step.resemblance.mean for step in steps}}
        rows.append({**row, "all_random": steps[-1].resemblance.mean})
    return rows


def permuted(case: Case) -> list[dict[str, Any]]:
    """Scores of the digits network trained on permuted labels against those from true ones, from the same first weights."""
    settings = TrainingSettings(20, 64, 0.05, 5e-4, False, case.seed)
    rows = []
    for ranker in ("gap", "gap-hierarchical", "magnitude", "random"):

        def rank(network: Network, ranker: str = ranker) -> Any:
            return rank_kernels(RankingTask(network, case.calibration, case.seed), ranker).layers

        found = label_permutation(case.network, case.splits.train, rank, settings)
        rows.append({
            "ranker": ranker, "permuted": found.permuted.mean, "control": found.control.mean, "accuracy": found.accuracy,
            "permuted_accuracy": found.permuted_accuracy,
        })  # fmt: skip
    return rows


def statistic(case: Case) -> list[dict[str, Any]]:
    """The mean loss (KL, nats) when one group loses its lowest units by a statistic, before and after reconstruction."""
    network = case.network
    groups = find_groups(network.module, network.example())
    rows = []
    for name, layers in _candidates(case).items():
        units = score_units(groups, KernelScores(name, "any", layers))
        measured = measure_sensitivity(network, groups, units, case.calibration)
        after = {share: _mean_loss(measured, groups, share) for share in (0.75, 0.5)}
        before = {share: _loss_before(case, groups, units, share) for share in (0.75, 0.5)}
        rows.append({
            "statistic": name,
            **{f"before, {share:g} kept": before[share] for share in before},
            **{f"after, {share:g} kept": after[share] for share in after},
            "groups": len(units), "images": measured.judged_images,
        })  # fmt: skip
    return rows


def plans(case: Case) -> list[dict[str, Any]]:
    """The loss (KL, nats, validation images) of whole plans by a statistic, allocated by sensitivity, reconstructed."""
    network = case.network
    groups, costs = find_groups(network.module, network.example()), measure_cost(network)
    judged = case.splits.validation.sample(2000, case.seed)
    with torch.no_grad():
        original = torch.cat([network.logits(batch) for batch, _ in judged.batches(200)])
    rows = []
    for name, layers in _candidates(case).items():
        units = score_units(groups, KernelScores(name, "any", layers))
        found = measure_sensitivity(network, groups, units, case.calibration)
        row: dict[str, Any] = {"statistic": name}
        for macs in (0.77, 0.67, 0.5, 0.33):
            plan = plan_pruning(groups, units, costs, BudgetSettings(macs=macs), found)
            fixed, _ = repair(network, surgery.cut(network, plan), case.calibration, "reconstruct")
            with torch.no_grad():
                left = torch.cat([fixed.logits(batch) for batch, _ in judged.batches(200)])
            row[f"{macs:g} of the MACs"] = divergence(original, left)
        rows.append({**row, "images": len(judged)})
        print(rows[-1], flush=True)
    return rows


def _candidates(case: Case) -> dict[str, dict[str, Tensor]]:
    """Rankings to choose from: statistics of gAP's contributions, the truth by ablation, and others beside them."""
    found = contributions(case.network, case.calibration)
    candidates: dict[str, dict[str, Tensor]] = {}
    for name in STATISTICS:
        for baseline in ("zero", "mean"):
            values = found.statistic(name, baseline)
            label = name if name != "mean" else "|mean|"
            candidates[f"{label}, {baseline} baseline"] = {layer: part.abs() for layer, part in values.items()}
    for name in ("magnitude", "taylor", "random"):
        candidates[name] = dict(rank_kernels(RankingTask(case.network, case.calibration, case.seed), name).layers)
    truth = ablation_truth(case.network, case.calibration.subset(torch.arange(128)))
    candidates["ablation, root mean square"] = truth.statistic("root_mean_square")
    return candidates


def _mean_loss(measured: Any, groups: Any, share: float) -> float:
    wanted = {group.name: round(share * group.units) for group in groups if group.name in measured.curves}
    losses = [dict(measured.curves[name]).get(kept) for name, kept in wanted.items()]
    return statistics.fmean(loss for loss in losses if loss is not None)


def _loss_before(case: Case, groups: Any, units: dict[str, UnitScores], share: float) -> float:
    """The same cuts with nothing repaired."""
    judged = case.splits.validation.sample(400, case.seed)
    original = torch.cat([case.network.logits(batch).detach() for batch, _ in judged.batches(200)])
    costs, losses = measure_cost(case.network), []
    for group in groups:
        if group.locked:
            continue
        gone = units[group.name].values.argsort(stable=True)[: group.units - round(share * group.units)].tolist()
        cut = cut_of(groups, {group.producers[0].layer: [group.producers[0].channels[unit][0] for unit in gone]})
        plan = PruningPlan("macs", 1.0, costs.of({}), costs.of_cut(cut), "", (), cut)
        small = surgery.cut(case.network, plan)
        left = torch.cat([small.logits(batch).detach() for batch, _ in judged.batches(200)])
        losses.append(divergence(original, left))
    return statistics.fmean(losses)


def speed(name: str, seed: int) -> list[dict[str, Any]]:
    """What ranking by gAP costs: ratios of medians, everything interleaved in one run."""
    seed_everything(seed)
    if name == "resnet50":
        network, batch, images = _large(), 8, 24
    else:
        settings = ModelSettings(f"{SHARED}/models/resnet_cifar.py:{name}", f"{SHARED}/models/{name}-cifar10-jpeg.pth")
        network, batch, images = load_model(settings), 64, 512
    network = _named(network)
    pixels = torch.rand(images, *network.input_shape, generator=torch.Generator().manual_seed(seed))
    from secateur.network.images.images import images_from_tensor

    given = images_from_tensor(pixels, torch.arange(images) % len(network.class_names), network.preprocessing)
    work: dict[str, Callable[[], object]] = {
        "gap": lambda: contributions(network, given, batch_size=batch),
        "training pass": lambda: _training_pass(network, given, batch),
    }
    times: dict[str, list[float]] = {label: [] for label in work}
    for _ in range(RUNS + 1):
        for label, run in work.items():
            start = time.perf_counter()
            run()
            times[label].append(time.perf_counter() - start)
    ratios = sorted(a / b for a, b in zip(times["gap"][1:], times["training pass"][1:], strict=True))
    row: dict[str, Any] = {
        "network": name, "images": images, "batch": batch, "runs": RUNS,
        "gap_seconds": statistics.median(times["gap"][1:]),
        "training_pass_seconds": statistics.median(times["training pass"][1:]),
        "gap_over_training_pass": statistics.median(ratios), "lowest": ratios[0], "highest": ratios[-1],
    }  # fmt: skip
    few = given.subset(torch.arange(batch))
    each = statistics.median(_timed(lambda: contributions(network, few, batch_size=batch)) for _ in range(3))
    row["gap_seconds_one_batch"] = each
    layers, conductance = _conductance_seconds(network, few)
    row |= {
        "conductance_layers_timed": layers, "conductance_seconds_all_layers": conductance,
        "conductance_over_gap": conductance / each,
    }  # fmt: skip
    if name != "resnet50":
        kernels, naive = _one_by_one_seconds(network, few)
        batched = _timed(lambda: ablation_truth(network, few))
        row |= {
            "kernels": kernels, "ablation_one_by_one_seconds": naive, "one_by_one_over_gap": naive / each,
            "batched_ablation_seconds": batched, "batched_ablation_over_gap": batched / each,
        }  # fmt: skip
    return [row]


def _large() -> Network:
    from secateur.network.images.pictures import Preprocessing
    from secateur.network.network import Source

    module = models.resnet50(num_classes=1000).eval()
    return Network(module, Preprocessing((3, 224, 224), (0.5,) * 3, (0.25,) * 3), (), Source("torchvision resnet50"))


def _named(network: Network) -> Network:
    from dataclasses import replace

    with torch.no_grad():
        classes = network.logits(network.example(1)).shape[1]
    return replace(network, class_names=tuple(f"class {index}" for index in range(classes)))


def _training_pass(network: Network, images: Images, batch_size: int) -> None:
    """Forward and backward with gradients of all weights, BatchNorm in training mode, no step."""
    module = network.module
    state = {name: value.clone() for name, value in module.named_buffers()}
    module.train()
    try:
        for batch, labels in images.batches(batch_size):
            loss = F.cross_entropy(pick_logits(module(batch)), labels)
            loss.backward()
            module.zero_grad(set_to_none=True)
    finally:
        module.eval()
        for name, value in module.named_buffers():
            value.copy_(state[name])


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _conductance_seconds(network: Network, images: Images) -> tuple[int, float]:
    """captum's Conductance with its default 50 steps: timed on a few layers spread over the network, scaled to all."""
    from captum.attr import LayerConductance

    view = trace(network.module, network.example())
    layers = list(reading_nodes(view).values())[:-1]
    timed = layers[:: max(1, len(layers) // 3)][:3]
    inputs, labels = next(images.batches(len(images)))
    seconds = 0.0
    for nodes in timed:
        explainer = LayerConductance(view, view.get_submodule(str(nodes[0].target)))
        seconds += _timed(
            lambda explainer=explainer: explainer.attribute(
                inputs, target=labels, n_steps=50, internal_batch_size=len(inputs)
            )
        )
    return len(timed), seconds * len(layers) / len(timed)


def _one_by_one_seconds(network: Network, images: Images) -> tuple[int, float]:
    """The plain way: a hook sets one kernel, the whole network runs, once for every kernel; 60 kernels timed, scaled to all."""
    view = trace(network.module, network.example())
    inputs, _ = next(images.batches(len(images)))
    nodes = reading_nodes(view)
    widths = {layer: view.get_submodule(layer).weight.shape[0] for layer in nodes}
    kernels = sum(widths.values())
    generator = torch.Generator().manual_seed(0)
    everything = [(layer, kernel) for layer, width in widths.items() for kernel in range(width)]
    chosen = [everything[index] for index in torch.randperm(kernels, generator=generator)[:60].tolist()]
    start = time.perf_counter()
    with torch.no_grad():
        for layer, kernel in chosen:
            module = view.get_submodule(str(nodes[layer][0].target))
            hook = module.register_forward_hook(
                lambda _, __, out, kernel=kernel: out.index_fill(1, torch.tensor([kernel]), 0.0)
            )
            view(inputs)
            hook.remove()
    return kernels, (time.perf_counter() - start) * kernels / len(chosen)


def wanted() -> Work:
    """Every section and what it is about, in the order in which they are run."""
    work: dict[tuple[str, str], Callable[[Callable[[str], Case], int], list[dict[str, Any]]]] = {}
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
