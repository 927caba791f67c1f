"""Which provider runs here: one small convolution is run on it to know."""

import functools
from dataclasses import dataclass

import numpy as np

from ...common.errors import MachineError, UsageError
from .providers import ON_GPU, PROVIDERS, failure, runtime_library, runtime_packages
from .session import start_session


@dataclass(frozen=True)
class ProviderChoice:
    """The provider that will be used; ``note`` says aloud what was fallen back from, and why."""

    provider: str
    note: str = ""


def choose_provider(wanted: str) -> ProviderChoice:
    """``auto`` to CUDA where a convolution runs on it, else the CPU; a provider by name, or an error.

    Raises:
        MachineError: the provider asked for is not there, does not run, or both onnxruntime packages are installed.
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
            f"ONNX Runtime falls back to the CPU although there is a GPU: {reason}" if torch.cuda.is_available() else ""
        )
        return ProviderChoice("cpu", note)
    reason = why_not(wanted)
    if reason:
        raise MachineError(f"The provider {wanted} is required but does not run here: {reason} Try `secateur doctor`.")
    return ProviderChoice(wanted)


@functools.cache
def why_not(provider: str) -> str:
    """Why a provider does not run on this machine; empty if it does. One small convolution is run on it to know."""
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
    except Exception as error:  # the provider's libraries fail in their own ways
        return failure(error)
    real = session.get_providers()[0]
    if real != PROVIDERS[provider]:
        return f"a session asked for it runs on {real}."
    return "" if np.allclose(found, 27) else "a convolution of ones with 3x3x3 ones does not give 27 on it."


def _refuse_both_packages() -> None:
    found = runtime_packages()
    if len(found) > 1:
        raise MachineError(
            f"{' and '.join(found)} are installed, and together they lose providers: each overwrites the other's files. "
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
