"""Which provider runs on this machine, tested with a small convolution."""

import functools
from dataclasses import dataclass

import numpy as np

from ...common.errors import MachineError, UsageError
from .providers import ON_GPU, PROVIDERS, failure, runtime_library, runtime_packages
from .session import start_session


@dataclass(frozen=True)
class ProviderChoice:
    """The provider that will be used; ``note`` reports a fallback and its reason."""

    provider: str
    note: str = ""


def choose_provider(wanted: str) -> ProviderChoice:
    """Choose a provider: ``auto`` is CUDA if a convolution runs on it, otherwise the CPU; a named provider must run.

    Raises:
        MachineError: the named provider is missing or does not run, or two onnxruntime packages are installed.
    """
    if wanted not in ("auto", *PROVIDERS):
        raise UsageError(f"provider must be auto, {', '.join(PROVIDERS)} (got {wanted!r}).")
    _refuse_both_packages()
    if wanted == "cpu":
        return ProviderChoice("cpu")
    if wanted == "auto":
        reason = why_not("cuda")
        if not reason:
            return ProviderChoice("cuda")
        import torch

        note = (
            f"ONNX Runtime falls back to the CPU although a GPU is present: {reason}"
            if torch.cuda.is_available()
            else ""
        )
        return ProviderChoice("cpu", note)
    reason = why_not(wanted)
    if reason:
        raise MachineError(f"The provider {wanted} is required but does not run here: {reason} Try `secateur doctor`.")
    return ProviderChoice(wanted)


@functools.cache
def why_not(provider: str) -> str:
    """Why a provider does not run on this machine, tested with a small convolution; empty if it runs."""
    try:
        available = runtime_library().get_available_providers()
    except ImportError as error:
        return f"onnxruntime cannot be imported: {failure(error)}."
    if PROVIDERS[provider] not in available:
        return f"this onnxruntime build has no {PROVIDERS[provider]}."
    if provider in ON_GPU:
        import torch

        if not torch.cuda.is_available():
            return "torch sees no CUDA GPU."
    try:
        session = start_session(_small_convolution(), provider)
        (found,) = session.run(None, {"x": np.ones((1, 3, 8, 8), np.float32)})
    except Exception as error:  # the provider's libraries raise many exception types
        return failure(error)
    real = session.get_providers()[0]
    if real != PROVIDERS[provider]:
        return f"a session that requested it runs on {real}."
    return "" if np.allclose(found, 27) else "a convolution of ones with a 3x3x3 kernel of ones does not give 27 on it."


def _refuse_both_packages() -> None:
    found = runtime_packages()
    if len(found) > 1:
        raise MachineError(
            f"{' and '.join(found)} are both installed and overwrite each other's files, so providers are missing. "
            f"Run `pip uninstall {' '.join(found)}`, then install secateur again."
        )


def _small_convolution() -> bytes:
    from onnx import TensorProto, checker, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, (4, 3, 3, 3), np.ones(108, np.float32))
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 4, 6, 6))],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    checker.check_model(model)
    return bytes(model.SerializeToString())
