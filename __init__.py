"""Secateur cuts the kernels that a convolutional network does not need, and shows why."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .explain.ranking import rank_kernels as rank_kernels
    from .export.onnx_model import export_onnx as export_onnx
    from .network.images import load_images as load_images
    from .network.labelling import label_images as label_images
    from .network.model import load_model as load_model
    from .pipeline import prune_and_export as prune_and_export
    from .prune.plan import plan_pruning as plan_pruning
    from .prune.recover import recover as recover
    from .prune.repair import repair as repair
    from .prune.surgery import cut as cut

__version__ = "0.1.0"

_HOMES = {
    "cut": "prune.surgery",
    "export_onnx": "export.onnx_model",
    "label_images": "network.labelling",
    "load_images": "network.images",
    "load_model": "network.model",
    "plan_pruning": "prune.plan",
    "prune_and_export": "pipeline",
    "rank_kernels": "explain.ranking",
    "recover": "prune.recover",
    "repair": "prune.repair",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: ``import secateur`` alone loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
