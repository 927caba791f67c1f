"""Secateur cuts the kernels that a convolutional network does not need, and shows why.

The names in ``__all__`` are the stable interface; everything else may move between versions.

Examples:
    The whole chain, on the embedded digits.



    >>> import secateur
    >>> network = secateur.load_model("digits")
    >>> images = secateur.load_images("digits", network.preprocessing)
    >>> network, images = secateur.match_classes(network, images)
    >>> calibration = images.train.sample(200, seed=0)

    Explain: every kernel gets a score, and every unit (what must be cut together) the sum of its kernels'.

    >>> scores = secateur.rank_kernels(secateur.RankingTask(network, calibration), "gap")
    >>> groups = secateur.find_groups(network.module, network.example())
    >>> units = secateur.score_units(groups, scores)

    Plan: what each group loses at each width is measured, and what loses least goes until the budget holds.

    >>> costs = secateur.measure_cost(network)
    >>> sensitivity = secateur.measure_sensitivity(network, groups, units, calibration)
    >>> plan = secateur.plan_pruning(groups, units, costs, secateur.BudgetSettings(macs=0.5), sensitivity)
    >>> 0.4 < plan.after.macs / plan.before.macs <= 0.5
    True

    Cut, repair without labels, fine-tune with them. Every call gives a new network; those before it stay as they are.

    >>> small = secateur.cut(network, plan)
    >>> small, repaired = secateur.repair(network, small, calibration, validation=images.validation)
    >>> small, history = secateur.recover(network, small, images, secateur.RecoverySettings(epochs=1))

    Ship, and measure what was shipped.

    >>> from pathlib import Path
    >>> slim = secateur.export_onnx(small, Path("slim.onnx"))
    >>> slim.parity.max_relative_difference < 1e-4
    True
    >>> secateur.measure_accuracy(slim.path, images.test, network.class_names).accuracy > 0.97
    True
    >>> folder = secateur.save(small, plan, Path("slim")).parent
    >>> secateur.measure_cost(secateur.load_model(str(folder))).whole.macs == plan.after.macs
    True
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .common.errors import InputError as InputError
    from .common.errors import MachineError as MachineError
    from .common.errors import SecateurError as SecateurError
    from .common.errors import UsageError as UsageError
    from .explain.ranking import rank_kernels as rank_kernels
    from .explain.scores import RankingTask as RankingTask
    from .explain.unit_scores import score_units as score_units
    from .export.measure.accuracy import measure_accuracy as measure_accuracy
    from .export.measure.latency import compare_latency as compare_latency
    from .export.onnx.model import export_onnx as export_onnx
    from .network.channels.follow import find_groups as find_groups
    from .network.images.load import load_images as load_images
    from .network.images.predicted_labels import label_images as label_images
    from .network.load import load_model as load_model
    from .network.load import match_classes as match_classes
    from .pipeline.prune_and_export import prune_and_export as prune_and_export
    from .pipeline.recipe.recipe import Recipe as Recipe
    from .prune.cost import measure_cost as measure_cost
    from .prune.planning import plan_pruning as plan_pruning
    from .prune.repair.fine_tune import recover as recover
    from .prune.repair.repair import repair as repair
    from .prune.settings import BudgetSettings as BudgetSettings
    from .prune.settings import RecoverySettings as RecoverySettings
    from .prune.surgery import cut as cut
    from .prune.surgery import save as save
    from .prune.widths.measure_sensitivity import measure_sensitivity as measure_sensitivity

__version__ = "0.1.0"

_HOMES = {
    "BudgetSettings": "prune.settings",
    "InputError": "common.errors",
    "MachineError": "common.errors",
    "RankingTask": "explain.scores",
    "Recipe": "pipeline.recipe.recipe",
    "RecoverySettings": "prune.settings",
    "SecateurError": "common.errors",
    "UsageError": "common.errors",
    "compare_latency": "export.measure.latency",
    "cut": "prune.surgery",
    "export_onnx": "export.onnx.model",
    "find_groups": "network.channels.follow",
    "label_images": "network.images.predicted_labels",
    "load_images": "network.images.load",
    "load_model": "network.load",
    "match_classes": "network.load",
    "measure_accuracy": "export.measure.accuracy",
    "measure_cost": "prune.cost",
    "measure_sensitivity": "prune.widths.measure_sensitivity",
    "plan_pruning": "prune.planning",
    "prune_and_export": "pipeline.prune_and_export",
    "rank_kernels": "explain.ranking",
    "recover": "prune.repair.fine_tune",
    "repair": "prune.repair.repair",
    "save": "prune.surgery",
    "score_units": "explain.unit_scores",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: ``import secateur`` alone loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
