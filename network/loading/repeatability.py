"""Refuse a network that answers differently each time: nothing that is compared before and after a cut would mean anything."""

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...common.errors import InputError
from .outputs import tensors_in

TOLERANCE = 1e-5
"""Largest difference between two calls, of the largest |output|: sums in parallel may come out in another order."""
MORE_RUNS = 18
"""Calls of a network that draws random numbers without any visible effect: dropout of few units often drops none."""
Pick = Callable[[object], Mapping[str, Tensor]]


def check_repeats(module: nn.Module, example: Tensor, pick: Pick = tensors_in) -> None:
    """Check that a module in evaluation mode gives the same outputs for the same input.

    Args:
        pick: the outputs to look at, by name.

    Raises:
        InputError: the outputs differ, naming the modules that make them differ where they can be found.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        before = _generators()
        first = pick(module(example))
        drew = before != _generators()
        for _ in range(1 + MORE_RUNS if drew else 1):
            difference = _difference(first, pick(module(example)))
            if difference > TOLERANCE:
                break
        else:
            return
        culprits = _drawing(module, example) or _first_to_differ(module, example)
    raise InputError(
        f"The network answers differently each time in evaluation mode (by {100 * difference:.2g}% of its largest output "
        f"for the same images): {culprits or 'its forward keeps something from call to call, or draws random numbers'}. "
        "A pruned network could not be compared with it. Let random parts and dropout depend on self.training, as nn.Dropout "
        "and F.dropout(x, p, self.training) do, or leave them out of the model."
    )


def _generators() -> tuple[Any, ...]:
    """The states of the random number generators that a forward may use."""
    _, key, position, *_ = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), np.asarray(key).tobytes(), position, random.getstate()


def _difference(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """The largest difference of two calls' outputs, of the largest |output|."""
    worst = 0.0
    for name, tensor in first.items():
        other = second.get(name)
        if other is None or other.shape != tensor.shape:
            return float("inf")
        if tensor.numel():
            largest = max(float(tensor.double().abs().nan_to_num().max()), 1e-12)
            worst = max(worst, float((other.double() - tensor.double()).abs().nan_to_num().max()) / largest)
    return worst


class _RandomOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the operations that move torch's generator, with the module that they run in."""

    def __init__(self, running: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.running, self.found = running, list[tuple[str, str]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = torch.get_rng_state()
        result = func(*args, **(kwargs or {}))
        if not torch.equal(before, torch.get_rng_state()):
            self.found.append((self.running[-1] if self.running else "", str(func.overloadpacket.__name__)))
        return result


def _drawing(module: nn.Module, example: Tensor) -> str:
    """The modules in whose own forward torch draws random numbers, and the operations that do; empty if there are none."""
    running: list[str] = []
    with (
        _watching(module, lambda name, _: running.append(name), lambda *_: running.pop()),
        _RandomOperations(running) as mode,
    ):
        module(example)
    operations: dict[str, list[str]] = {}
    for name, operation in mode.found:
        if operation not in operations.setdefault(name, []):
            operations[name].append(operation)
    told = []
    for name, drawn in list(operations.items())[:3]:
        hint = ", as dropout does" if {"bernoulli_", "bernoulli", "native_dropout"} & set(drawn) else ""
        told.append(f"{_named(module, name)} draws random numbers ({', '.join(drawn)}{hint})")
    more = len(operations) - len(told)
    return ", ".join(told) + (f" and {more} more do" if more else "")


def _first_to_differ(module: nn.Module, example: Tensor) -> str:
    """The first module whose outputs differ between two calls while its inputs agree; empty if there is none."""
    runs = [_digests(module, example) for _ in range(2)]
    for (name, inputs, output), other in zip(*runs, strict=False):
        if other[:2] == (name, inputs) and other[2] != output:
            return f"{_named(module, name)} gives other values for the same input"
    return ""


def _digests(module: nn.Module, example: Tensor) -> list[tuple[str, str, str]]:
    """Every call of a module inside: its name, digests of its inputs and of its outputs; inner calls come first."""
    calls: list[tuple[str, str, str]] = []
    given: list[str] = []

    def enter(_name: str, inputs: object) -> None:
        given.append(_digest(inputs))

    def leave(name: str, output: object) -> None:
        calls.append((name, given.pop(), _digest(output)))

    with _watching(module, enter, leave):
        module(example)
    return calls


@contextlib.contextmanager
def _watching(
    module: nn.Module, enter: Callable[[str, object], Any], leave: Callable[[str, object], Any]
) -> Iterator[None]:
    """Call ``enter(name, inputs)`` before every call of a module inside, and ``leave(name, output)`` after it."""
    with contextlib.ExitStack() as stack:
        for name, child in module.named_modules():

            def before(_: nn.Module, inputs: Any, name: str = name) -> None:
                enter(name, inputs)

            def after(_: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
                leave(name, output)

            stack.callback(child.register_forward_pre_hook(before).remove)
            stack.callback(child.register_forward_hook(after).remove)
        yield


def _named(module: nn.Module, name: str) -> str:
    return f"{name} ({type(module.get_submodule(name)).__name__})" if name else f"{type(module).__name__}.forward"


def _digest(values: object) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor):
            digest.update(leaf.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
