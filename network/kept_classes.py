"""Restrict a network and its images to some of the classes: its head is cut to them, other images are left out."""

import difflib
from collections.abc import Sequence
from dataclasses import replace

import torch

from ..common.errors import InputError
from .channels.cut import LayerCut, apply_cut
from .graph.topology import class_nodes
from .graph.trace import trace
from .images.images import Images
from .images.splits import Splits, make_splits
from .network import Network

TOLERANCE = 1e-4


def kept_classes(names: Sequence[str], keep: Sequence[str] | None, drop: Sequence[str] | None) -> tuple[int, ...]:
    """The indices of the classes to keep, in the network's order; all of them if neither ``keep`` nor ``drop`` is given.

    Raises:
        InputError: there is no class of a name, or fewer than two classes would be left.
    """
    asked = keep if keep is not None else drop
    if asked is None:
        return tuple(range(len(names)))
    for name in asked:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3)
            hint = f"Did you mean {', '.join(near)}?" if near else f"The classes are: {', '.join(names[:20])}."
            raise InputError(f"No class is named {name!r}. {hint}")
    kept = tuple(index for index, name in enumerate(names) if (name in asked) == (keep is not None))
    if len(kept) < 2:
        raise InputError(f"{len(kept)} of {len(names)} classes would be left. Keep at least two.")
    return kept


def restrict_network(network: Network, kept: Sequence[int]) -> Network:
    """The network with its head cut to the kept classes; their scores stay the same.

    The cut is appended to the network's ``cuts``.

    Raises:
        InputError: the network cannot be traced, or its scores are not the plain outputs of its last layers (a softmax in
            the network normalises over all classes).
    """
    heads = {str(node.target) for node in class_nodes(trace(network.module, network.example()))}
    example = network.example()
    with torch.no_grad():
        whole = network.logits(example)
    dropped = tuple(index for index in range(whole.shape[1]) if index not in set(kept))
    if not dropped:
        return network
    cut = {name: LayerCut(dropped, (), whole.shape[1], None) for name in sorted(heads)}
    module = apply_cut(network.module, cut, example).eval()
    names = tuple(network.class_names[index] for index in kept) if network.class_names else ()
    result = replace(network, module=module, class_names=names, cuts=(*network.cuts, cut))
    try:
        with torch.no_grad():
            found = result.logits(example)
        equal = found.shape == (len(whole), len(kept)) and torch.allclose(
            found, whole[:, list(kept)], atol=TOLERANCE * float(whole.abs().max())
        )
    except RuntimeError:
        equal = False
    if not equal:
        raise InputError(
            f"The head ({', '.join(sorted(heads))}) cannot be cut to some of the classes: the network's scores are not its "
            "last layers' own outputs. Remove what follows these layers (a softmax, for example)."
        )
    return result


def restrict_images(splits: Splits, kept: Sequence[int]) -> Splits:
    """The images of the kept classes, relabelled in the order of ``kept``.

    Raises:
        InputError: a split has no image of these classes.
    """
    place = {label: index for index, label in enumerate(kept)}

    def of(images: Images, what: str) -> Images:
        if not len(images):
            return images
        rows = torch.tensor([index for index, label in enumerate(images.labels.tolist()) if label in place])
        if not len(rows):
            raise InputError(f"The {what} split has no image of the kept classes. Add some, or keep other classes.")
        chosen = images.subset(rows)
        return replace(chosen, labels=torch.tensor([place[label] for label in chosen.labels.tolist()]))

    parts = {
        "train": of(splits.train, "train"),
        "val": of(splits.validation, "validation"),
        "test": of(splits.test, "test"),
    }
    names = tuple(splits.class_names[index] for index in kept)
    note = (
        f"Kept classes: {', '.join(names)} ({len(names)} of {len(splits.class_names)}); the baseline is the original network "
        "with its head cut to them, on images of these classes."
    )
    return make_splits(parts, names, (*splits.notes, note))
