"""The stage that times the networks of a run in torch, beside their files in ONNX Runtime."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...common.environment import describe_environment
from ...common.files import read_json, write_json
from ...export.measure.fused_biases import chosen_before
from ...export.measure.torch_times import TYPES, TorchTask, measure_torch_times
from ...export.runtime.providers import ON_GPU
from ..inputs import Inputs
from .candidates import Candidate
from .latency_budget import timing_settings
from .shipped_files import Files
from .store import Stage, StageStore, Workplace


def time_in_torch(
    inputs: Inputs, pruned: Candidate, files: Files, conditions: Mapping[str, Any], provider: str, store: StageStore
) -> dict[str, Any] | None:
    """A report's ``torch_times``; None if they are not wanted, which is the default on the CPU.

    Args:
        conditions: those of the files' latency, which say how their sessions were opened.
    """
    wanted = inputs.recipe.measurement.torch_times
    if not (provider in ON_GPU if wanted is None else wanted):
        return None
    return store.run(torch_stage(inputs, pruned, files, conditions, provider))


def torch_stage(
    inputs: Inputs, pruned: Candidate, files: Files, conditions: Mapping[str, Any], provider: str
) -> Stage[dict[str, Any]]:
    """Time the baseline and the pruned network in every runtime, at every batch size of the recipe."""
    measurement = inputs.recipe.measurement
    paths = {variant.file.path.name: variant.file.path for variant in files.variants}
    settings = chosen_before(timing_settings(inputs, provider), conditions, paths)

    def work(place: Workplace) -> None:
        by_precision: dict[str, list[Path]] = {}
        for variant in files.variants:
            if variant.file.precision in TYPES:
                by_precision.setdefault(variant.file.precision, []).append(variant.file.path)
        pairs = {precision: (found[0], found[1]) for precision, found in by_precision.items()}
        task = TorchTask((inputs.network, pruned.network), pairs, settings)
        found = measure_torch_times(task, measurement.measured_batches, place.progress)
        write_json(place.folder / "torch.json", found.to_json())

    def load(folder: Path) -> dict[str, Any]:
        return dict(read_json(folder / "torch.json"))

    return Stage(
        "torch",
        {
            "export": files.key,
            "provider": provider,
            "batches": measurement.measured_batches,
            "how": [measurement.threads, measurement.cuda_graphs, sorted(path.name for path in settings.fused)],
            "environment": describe_environment().to_json(),
        },
        work,
        load,
    )
