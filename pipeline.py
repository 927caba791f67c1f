"""The stages in order: explain, plan, cut, repair, recover, export, measure, report. Each keyed by its inputs, resumable."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from .environment import choose_device, describe_environment, installed_packages, seed_everything
from .errors import ExitCode, InputError
from .explain.ranking import UnitScores, rank_kernels, score_units
from .explain.scores import KernelScores, Progress, RankingTask, get_ranker, silent
from .export.accuracy import Accuracy, Drop, measure_accuracy, measure_drop
from .export.gates import exit_code, judge
from .export.latency import Comparison, Latency, Ratio, compare_latency
from .export.onnx_model import OnnxModel, Parity, export_onnx
from .export.report import REPORT_FILES, SCHEMA_VERSION, to_html, to_markdown, write_report
from .export.runtime import choose_provider
from .files import locked_folder, read_json, replacing, sha256_file, sha256_json, write_json, write_text
from .network.channels import HEAD_LOCK, ChannelGroup, find_groups
from .network.evaluation import Interval
from .network.images import Images, Splits, check_readable, load_images
from .network.model import MODEL_FILE, PLAN_FILE, Network, load_model, load_network, match_classes
from .network.training import Epoch, History
from .prune import surgery
from .prune.cost import Cost, CostModel, measure_cost
from .prune.plan import GroupPlan, PruningPlan, plan_pruning
from .prune.reconstruction import LayerFit
from .prune.recover import recover
from .prune.repair import RepairReport, RepairStep, repair
from .prune.sensitivity import Sensitivity, measure_sensitivity
from .recipe import Recipe

SCORES_FILE, SENSITIVITY_FILE, RECIPE_FILE = "scores.safetensors", "sensitivity.json", "recipe.toml"
BASELINE_ONNX, PRUNED_ONNX = "baseline.onnx", "model.onnx"
T = TypeVar("T")


class Observer:
    """What a run tells while it works; this one stays silent. The command line has one that prints."""

    def say(self, text: str) -> None:
        """Something the user should know."""

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """A stage begins and ends; inside, progress is told as (done, total)."""
        yield silent

    def skipped(self, name: str) -> None:
        """A stage's result was there already."""


@dataclass(frozen=True)
class Inputs:
    """Network and images, checked and brought together. ``calibration`` is the sample that ranks and repairs."""

    recipe: Recipe
    network: Network
    splits: Splits
    calibration: Images
    device: str
    notes: tuple[str, ...]
    fingerprint: str = field(repr=False)
    content: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class RunResult:
    """Where a run wrote, its report, and the exit code its gates give."""

    folder: Path
    report: Mapping[str, Any]
    exit_code: ExitCode


def prune_and_export(recipe: Recipe, out: Path, *, resume: bool = False, observer: Observer | None = None) -> RunResult:
    """The main job: explain, plan, cut, repair, fine-tune, export, measure and report into ``out``.

    Files of an earlier run are replaced only when the new ones are complete. With ``resume`` stages whose inputs are the
    same as before are taken from the run folder.

    Raises:
        SecateurError: of the kind whose exit code fits; nothing in ``out`` has changed then.
    """
    observer = observer or Observer()
    provider = choose_provider(recipe.gates.require_provider or recipe.measurement.provider)
    get_ranker(recipe.ranking.rank_by)
    with locked_folder(out):
        stages = _Stages(out / ".secateur" / "stages", resume, observer)
        with stages.timed("load") as progress:
            inputs = load_inputs(recipe, progress)
        for note in inputs.notes:
            observer.say(note)
        if provider.note:
            observer.say(provider.note)
        with stages.timed("channels"):
            groups = find_groups(inputs.network.module, inputs.network.example(2))
            costs = measure_cost(inputs.network)
        for name, reason in _locked(groups):
            observer.say(f"{name} stays whole: {reason}")
        scores = stages.run(
            "explain",
            {
                "network": inputs.fingerprint,
                "images": inputs.content["calibration"],
                "preprocessing": asdict(inputs.network.preprocessing),
                "calibration": recipe.data.calibration,
                "ranking": asdict(recipe.ranking),
                "seed": recipe.seed,
                "device": inputs.device,
                "packages": installed_packages(),
            },
            lambda folder, progress: _explained(inputs, folder, progress),
            lambda folder: KernelScores.load(folder / SCORES_FILE),
        )
        units = score_units(groups, scores)
        sensitivity: Sensitivity | None = None
        if recipe.budget.allocation == "sensitivity":
            sensitivity = stages.run(
                "sensitivity",
                {"explain": stages.keys["explain"]},
                lambda folder, progress: _measured(inputs, groups, units, folder, progress),
                lambda folder: Sensitivity.load(folder / SENSITIVITY_FILE),
            )
        plan = stages.run(
            "plan",
            {"ranked": stages.keys.get("sensitivity", stages.keys["explain"]), "budget": asdict(recipe.budget)},
            lambda folder, progress: _planned(groups, units, costs, recipe, sensitivity, folder),
            lambda folder: PruningPlan.load(folder / PLAN_FILE),
        )
        if plan.missed:
            observer.say(f"Budget missed: {plan.missed}")
        small, repaired = stages.run(
            "repair",
            {
                "plan": stages.keys["plan"],
                "repair": asdict(recipe.repair),
                "validation": inputs.content["validation"],
            },
            lambda folder, progress: _repaired(inputs, plan, folder, progress),
            lambda folder: (_reload(folder, recipe), _repair_report(read_json(folder / "repair.json"))),
        )
        history: History | None = None
        if recipe.recovery.epochs:
            small, history = stages.run(
                "recover",
                {
                    "repair": stages.keys["repair"],
                    "recovery": asdict(recipe.recovery),
                    "images": inputs.content["training"],
                },
                lambda folder, progress: _recovered(inputs, small, plan, folder, progress),
                lambda folder: (_reload(folder, recipe), _history(read_json(folder / "history.json"))),
            )
        exported = stages.run(
            "export",
            {"network": stages.keys.get("recover", stages.keys["repair"])},
            lambda folder, progress: _exported(inputs, small, plan, folder),
            _load_exported,
        )
        files = tuple(model.path for model in exported)
        accuracies = stages.run(
            "accuracy",
            {
                "export": stages.keys["export"],
                "provider": provider.provider,
                "images": inputs.content["test"],
            },
            lambda folder, progress: _accuracies(inputs, files, provider.provider, folder, progress),
            _load_accuracies,
        )
        drop = measure_drop(*accuracies, inputs.splits.test, recipe.seed)
        comparisons = stages.run(
            "latency",
            {
                "export": stages.keys["export"],
                "provider": provider.provider,
                "batches": recipe.measurement.measured_batches,
                "environment": describe_environment().to_json(),
            },
            lambda folder, progress: _latencies(inputs, files, provider.provider, folder, progress),
            _load_latencies,
        )
        report = assemble_report(
            inputs, plan, costs, small, repaired, history, exported, accuracies, drop, comparisons, provider.provider,
            provider.note, stages.timings,
        )  # fmt: skip
        _deliver(out, inputs, scores, sensitivity, plan, small, exported, report)
        return RunResult(out, report, ExitCode(report["exit_code"]))


def load_inputs(recipe: Recipe, progress: Progress = silent) -> Inputs:
    """Load and check network and images before any work: formats, classes, finite weights, readable pictures.

    Raises:
        InputError: naming what is wrong and what to do.
        MachineError: the device asked for is not there.
    """
    device = choose_device(recipe.device)
    seed_everything(recipe.seed)
    network = load_model(recipe.model)
    data = recipe.data.data or ("digits" if recipe.model.model == "digits" else None)
    if data is None:
        raise InputError(
            f"--model {recipe.model.model} needs its images: give --data (a folder with train/ and test/, cifar10:DIR, "
            "cifar100:DIR, fashion-mnist:DIR, digits, or file.py:function)."
        )
    splits = load_images(data, network.preprocessing, validation_share=recipe.data.validation_share, seed=recipe.seed)
    network, splits = match_classes(network, splits)
    calibration = splits.train.sample(recipe.data.calibration, recipe.seed)
    parts = {"calibration": calibration, "validation": splits.validation, "test": splits.test}
    if recipe.recovery.epochs:
        parts["training"] = splits.train
    total, done = sum(map(len, parts.values())), 0
    content: dict[str, str] = {}

    def step(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    for name, images in parts.items():
        if not len(images):
            raise InputError(f"{data}: the {name} split is empty.")
        content[name] = check_readable(images, name, step)
    return Inputs(
        recipe, network, splits, calibration, device, (*network.notes, *splits.notes), _fingerprint(network), content
    )


def explain(inputs: Inputs, progress: Progress = silent) -> KernelScores:
    """Score every kernel by the recipe's ranker on the calibration images."""
    recipe = inputs.recipe
    task = RankingTask(inputs.network, inputs.calibration, recipe.seed, inputs.device, progress)
    return rank_kernels(task, recipe.ranking.rank_by)


def plan(inputs: Inputs, scores: KernelScores, progress: Progress = silent) -> tuple[PruningPlan, Sensitivity | None]:
    """Find the groups and costs of the network, measure sensitivities if the recipe asks for them, and plan."""
    groups = find_groups(inputs.network.module, inputs.network.example(2))
    units = score_units(groups, scores)
    sensitivity = None
    if inputs.recipe.budget.allocation == "sensitivity":
        sensitivity = measure_sensitivity(
            inputs.network, groups, units, inputs.calibration, device=inputs.device, progress=progress
        )
    return plan_pruning(groups, units, measure_cost(inputs.network), inputs.recipe.budget, sensitivity), sensitivity


def revised(inputs: Inputs, plan: PruningPlan) -> PruningPlan:
    """A plan as edited by hand: what its groups remove decides."""
    groups = find_groups(inputs.network.module, inputs.network.example(2))
    return plan.revised(groups, measure_cost(inputs.network))


def cut_and_repair(inputs: Inputs, plan: PruningPlan, progress: Progress = silent) -> tuple[Network, RepairReport]:
    """Cut by a plan and repair by the recipe, on the calibration images."""
    small = surgery.cut(inputs.network, plan)
    return repair(
        inputs.network,
        small,
        inputs.calibration,
        inputs.recipe.repair.repair,
        validation=inputs.splits.validation,
        seed=inputs.recipe.seed,
        device=inputs.device,
        progress=progress,
    )


def fine_tune(inputs: Inputs, small: Network, progress: Progress = silent) -> tuple[Network, History]:
    """Recover a pruned network by the recipe; the best epoch on validation is kept."""
    return recover(
        inputs.network,
        small,
        inputs.splits,
        inputs.recipe.recovery,
        seed=inputs.recipe.seed,
        device=inputs.device,
        progress=progress,
    )


class _Stages:
    """Runs stages, each in a folder named by the hash of its inputs; a folder is there whole or not at all."""

    def __init__(self, root: Path, resume: bool, observer: Observer) -> None:
        self.root, self.resume, self.observer = root, resume, observer
        self.keys: dict[str, str] = {}
        self.timings: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[Progress]:
        """A stage that is done anew in every run."""
        start = time.perf_counter()
        with self.observer.stage(name) as progress:
            yield progress
        self.timings[name] = time.perf_counter() - start

    def run(
        self,
        name: str,
        inputs: Mapping[str, Any],
        work: Callable[[Path, Progress], T],
        load: Callable[[Path], T],
    ) -> T:
        """Do ``work`` in the stage's folder, or ``load`` its result if the same inputs were worked on before."""
        self.keys[name] = sha256_json([name, inputs])
        folder = self.root / f"{name}-{self.keys[name][:16]}"
        if self.resume and (folder / "done.json").is_file():
            self.timings[name] = read_json(folder / "done.json")["seconds"]
            self.observer.skipped(name)
            return load(folder)
        if not self.resume and len(self.keys) == 1:  # the inputs are sound, so the stages of earlier runs may go
            shutil.rmtree(self.root, ignore_errors=True)
        partial = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with self.timed(name) as progress:
            work(partial, progress)
        write_json(partial / "done.json", {"seconds": self.timings[name]})
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
        return load(folder)


def _explained(inputs: Inputs, folder: Path, progress: Progress) -> KernelScores:
    scores = explain(inputs, progress)
    scores.save(folder / SCORES_FILE)
    return scores


def _measured(
    inputs: Inputs,
    groups: tuple[ChannelGroup, ...],
    units: Mapping[str, UnitScores],
    folder: Path,
    progress: Progress,
) -> Sensitivity:
    result = measure_sensitivity(
        inputs.network, groups, units, inputs.calibration, device=inputs.device, progress=progress
    )
    result.save(folder / SENSITIVITY_FILE)
    return result


def _planned(
    groups: tuple[ChannelGroup, ...],
    units: Mapping[str, UnitScores],
    costs: CostModel,
    recipe: Recipe,
    sensitivity: Sensitivity | None,
    folder: Path,
) -> PruningPlan:
    result = plan_pruning(groups, units, costs, recipe.budget, sensitivity)
    result.save(folder / PLAN_FILE)
    return result


def _repaired(inputs: Inputs, plan: PruningPlan, folder: Path, progress: Progress) -> tuple[Network, RepairReport]:
    small, report = cut_and_repair(inputs, plan, progress)
    surgery.save(small, plan, folder)
    write_json(folder / "repair.json", asdict(report))
    return small, report


def _recovered(
    inputs: Inputs, small: Network, plan: PruningPlan, folder: Path, progress: Progress
) -> tuple[Network, History]:
    tuned, history = fine_tune(inputs, small, progress)
    surgery.save(tuned, plan, folder)
    write_json(folder / "history.json", history.to_json())
    return tuned, history


def _exported(inputs: Inputs, small: Network, plan: PruningPlan, folder: Path) -> tuple[OnnxModel, OnnxModel]:
    recipe = inputs.recipe
    done = {
        "what": "pruned",
        "ranked_by": recipe.ranking.rank_by,
        "budget": {plan.resource: plan.fraction},
        "repair": recipe.repair.repair,
        "epochs": recipe.recovery.epochs,
        "seed": recipe.seed,
        "plan_sha256": sha256_json(plan.to_json()),
    }
    models = (
        export_onnx(inputs.network, folder / BASELINE_ONNX, {"what": "baseline"}),
        export_onnx(small, folder / PRUNED_ONNX, done),
    )
    write_json(folder / "export.json", [model.to_json() for model in models])
    return models


def _load_exported(folder: Path) -> tuple[OnnxModel, OnnxModel]:
    baseline, pruned = (
        OnnxModel(
            **{
                **values,
                "path": folder / values["path"],
                "parity": Parity(values["parity"]["max_relative_difference"], tuple(values["parity"]["batch_sizes"])),
            }
        )
        for values in read_json(folder / "export.json")
    )
    return baseline, pruned


def _accuracies(
    inputs: Inputs, files: tuple[Path, ...], provider: str, folder: Path, progress: Progress
) -> tuple[Accuracy, Accuracy]:
    test, names = inputs.splits.test, inputs.network.class_names
    count = len(test)
    baseline = measure_accuracy(files[0], test, names, provider, lambda done, total: progress(done, 2 * count))
    pruned = measure_accuracy(files[1], test, names, provider, lambda done, total: progress(count + done, 2 * count))
    rows = [{**asdict(result), "predictions": result.predictions.tolist()} for result in (baseline, pruned)]
    write_json(folder / "accuracy.json", rows)
    return baseline, pruned


def _load_accuracies(folder: Path) -> tuple[Accuracy, Accuracy]:
    import numpy as np

    baseline, pruned = (
        Accuracy(
            row["accuracy"], Interval(**row["interval"]), row["per_class"], np.array(row["predictions"], dtype=np.int64)
        )
        for row in read_json(folder / "accuracy.json")
    )
    return baseline, pruned


def _latencies(
    inputs: Inputs, files: tuple[Path, ...], provider: str, folder: Path, progress: Progress
) -> tuple[Comparison, ...]:
    batches = inputs.recipe.measurement.measured_batches
    rows = []
    for index, batch in enumerate(batches):

        def step(done: int, total: int, index: int = index) -> None:
            progress(index * 100 + 100 * done // total, 100 * len(batches))

        shape = inputs.network.input_shape
        rows.append(compare_latency(files[0], files[1], shape, batch, provider, seed=inputs.recipe.seed, progress=step))
    write_json(folder / "latency.json", [row.to_json() for row in rows])
    return tuple(rows)


def _load_latencies(folder: Path) -> tuple[Comparison, ...]:
    return tuple(
        Comparison(
            row["batch"],
            Latency(**row["baseline"]),
            Latency(**row["pruned"]),
            Ratio(**row["ratio"]),
            Ratio(**row["noise_floor"]),
        )
        for row in read_json(folder / "latency.json")
    )


def _repair_report(values: Mapping[str, Any]) -> RepairReport:
    return RepairReport(
        values["kind"],
        values["images"],
        tuple(RepairStep(**step) for step in values["steps"]),
        tuple(values["compensated"]),
        tuple(values["reestimated"]),
        tuple(LayerFit(**fit) for fit in values["fits"]),
        values["reconstruction_images"],
    )


def _history(values: Mapping[str, Any]) -> History:
    return History(tuple(Epoch(**row) for row in values["epochs"]), values["best"])


def _reload(folder: Path, recipe: Recipe) -> Network:
    """A stage's network, its factory named as the recipe names it rather than as seen from the stage's folder."""
    network = load_network(folder)
    if Path(recipe.model.model).is_dir():
        return network
    return replace(network, source=replace(network.source, model=recipe.model.model))


def assemble_report(
    inputs: Inputs,
    plan: PruningPlan,
    costs: CostModel,
    small: Network,
    repaired: RepairReport,
    history: History | None,
    exported: tuple[OnnxModel, OnnxModel],
    accuracies: tuple[Accuracy, Accuracy],
    drop: Drop,
    comparisons: tuple[Comparison, ...],
    provider: str,
    provider_note: str,
    timings: Mapping[str, float],
) -> dict[str, Any]:
    """Everything measured, in the form of ``report.schema.json``, judged by the recipe's gates."""
    recipe = inputs.recipe
    baseline, pruned = exported
    by_batch = {row.batch: row for row in comparisons}
    before = plan.before
    shipped = sum(parameter.numel() for parameter in small.module.parameters())  # a repair may have added biases
    after = Cost(plan.after.macs, shipped)
    used = after.macs / before.macs if plan.resource == "macs" else after.parameters / before.parameters
    gated = by_batch.get(recipe.measurement.latency_batch)
    gates = judge(
        recipe.gates,
        budget=(used, plan.fraction, plan.missed or _overrun(used, plan)),
        drop=drop,
        speedup=gated.ratio if gated else None,
        onnx_bytes=pruned.onnx_bytes,
        provider=provider,
    )
    sides = {}
    for name, accuracy, cost, model in (
        ("baseline", accuracies[0], before, baseline),
        ("pruned", accuracies[1], after, pruned),
    ):
        sides[name] = {
            "accuracy": accuracy.accuracy,
            "accuracy_interval": asdict(accuracy.interval),
            "accuracy_per_class": accuracy.per_class,
            "macs": cost.macs,
            "parameters": cost.parameters,
            "onnx_bytes": model.onnx_bytes,
            "onnx_sha256": model.sha256,
            "opset": model.opset,
            "latency": {str(row.batch): asdict(getattr(row, name)) for row in comparisons},
        }
    notes = [*inputs.notes, *([provider_note] if provider_note else [])]
    notes += [f"{name} stays whole: {reason}" for name, reason in _locked(plan.groups)]
    return {
        "schema_version": SCHEMA_VERSION,
        "secateur_version": installed_packages().get("secateur", "unknown"),
        "model": Path(recipe.model.model).name,
        "exit_code": int(exit_code(gates)),
        **sides,
        "drop": asdict(drop),
        "ratios": {
            "macs": before.macs / after.macs,
            "parameters": before.parameters / after.parameters,
            "onnx_bytes": baseline.onnx_bytes / pruned.onnx_bytes,
            "latency": {str(row.batch): asdict(row.ratio) for row in comparisons},
        },
        "noise_floor": {str(row.batch): asdict(row.noise_floor) for row in comparisons},
        "parity": {
            "max_relative_difference": max(model.parity.max_relative_difference for model in exported),
            "batch_sizes": list(pruned.parity.batch_sizes),
        },
        "provider": provider,
        "layers": _layer_rows(plan, costs),
        "gates": [gate.to_json() for gate in gates],
        "repair": asdict(repaired),
        "history": history.to_json() if history else None,
        "timings_s": dict(timings),
        "environment": describe_environment().to_json(),
        "recipe": recipe.to_dict(),
        "inputs": {
            "weights_sha256": inputs.network.source.weights_sha256 or inputs.fingerprint,
            "data_listing_sha256": inputs.splits.listing_sha256,
            "images": {
                "train": len(inputs.splits.train),
                "calibration": len(inputs.calibration),
                "validation": len(inputs.splits.validation),
                "test": len(inputs.splits.test),
            },
        },
        "notes": notes,
    }


def _overrun(used: float, plan: PruningPlan) -> str:
    """Why the network that is shipped is above the budget although its plan is not; nothing if it is not."""
    if used <= plan.fraction:
        return ""
    return f"biases that the repair added bring it to {used:.4f} of the baseline"


def _layer_rows(plan: PruningPlan, costs: CostModel) -> list[dict[str, Any]]:
    group_of = {layer: group for group in plan.groups for layer in group.layers}
    rows = []
    for name, shape in costs.layers.items():
        group = group_of.get(name)
        if shape.inputs is None or group is None:
            continue
        removed = len(plan.cut[name].out_removed) if name in plan.cut else 0
        rows.append(
            {
                "name": name,
                "group": group.name,
                "before": shape.outputs,
                "after": shape.outputs - removed,
                "aligned": group.aligned,
                "decided_by": group.decided_by,
                "locked": group.locked,
            }
        )
    return rows


def _deliver(
    out: Path,
    inputs: Inputs,
    scores: KernelScores,
    sensitivity: Sensitivity | None,
    plan: PruningPlan,
    small: Network,
    exported: tuple[OnnxModel, OnnxModel],
    report: Mapping[str, Any],
) -> None:
    """Put the finished files into the run folder, each whole."""
    text = to_markdown(report) + to_html(report)  # whatever cannot be written is met before anything is replaced
    text.encode("utf-8")
    for name in REPORT_FILES:
        (out / name).unlink(missing_ok=True)
    write_text(out / RECIPE_FILE, inputs.recipe.to_toml())
    scores.save(out / SCORES_FILE)
    if sensitivity is None:
        (out / SENSITIVITY_FILE).unlink(missing_ok=True)
    else:
        sensitivity.save(out / SENSITIVITY_FILE)
    surgery.save(small, plan, out)
    for model in exported:
        with replacing(out / model.path.name) as temporary:
            shutil.copyfile(model.path, temporary)
        if sha256_file(out / model.path.name) != model.sha256:
            raise InputError(f"{out / model.path.name} was changed while it was written. Is another program using it?")
    write_report(report, out)


def _locked(groups: Iterable[ChannelGroup | GroupPlan]) -> list[tuple[str, str]]:
    """Groups that stay whole, with the reason; the head goes without saying."""
    found = []
    for group in groups:
        if group.locked and group.locked != HEAD_LOCK:
            layers = group.layers if isinstance(group, GroupPlan) else tuple(member.layer for member in group.producers)
            others = [layer for layer in layers if layer != group.name]
            found.append((f"{group.name} (with {', '.join(others)})" if others else group.name, group.locked))
    return found


def _fingerprint(network: Network) -> str:
    """The SHA-256 of all tensors of a network with their names, of the cuts behind it, and of its output on seeded noise."""
    import hashlib

    digest = hashlib.sha256()
    for name, tensor in sorted(network.module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(
            tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            if tensor.dim()
            else str(tensor.item()).encode()
        )
    digest.update(str(len(network.cuts)).encode())
    with torch.no_grad():  # an edited forward around the same weights is another network
        digest.update(network.logits(network.example(2)).numpy().tobytes())
    return digest.hexdigest()


__all__ = ["MODEL_FILE", "Inputs", "Observer", "RunResult", "prune_and_export"]
