"""Networks and images of some of the classes only: the head cut to them, the other classes' images left out."""

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
    """The indices of the classes that stay, in the network's order; all of them if nothing is asked.

    Raises:
        InputError: a name that there is not (the nearest are told), or fewer than two classes would be left.
    """
    asked = keep if keep is not None else drop
    if asked is None:
        return tuple(range(len(names)))
    for name in asked:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3)
            hint = f"Did you mean {', '.join(near)}?" if near else f"There are: {', '.join(names[:20])}."
            raise InputError(f"No class is named {name!r}. {hint}")
    kept = tuple(index for index, name in enumerate(names) if (name in asked) == (keep is not None))
    if len(kept) < 2:
        raise InputError(f"{len(kept)} of {len(names)} classes would be left; at least two are needed.")
    return kept


def restrict_network(network: Network, kept: Sequence[int]) -> Network:
    """The network whose head gives the scores of the kept classes alone, equal to its scores of them before.

    The cut is one more of the network's ``cuts``.

    Raises:
        InputError: the network cannot be traced, or its scores are no plain outputs of its last layers (a softmax in the
            network weighs all classes against each other).
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
            "last layers' own outputs. Bring it without what comes behind them (a softmax, say)."
        )
    return result


def restrict_images(splits: Splits, kept: Sequence[int]) -> Splits:
    """The images of the kept classes, whose labels count in their order from now on.

    Raises:
        InputError: a split has no image of them.
    """
    place = {label: index for index, label in enumerate(kept)}

    def of(images: Images, what: str) -> Images:
        if not len(images):
            return images
        rows = torch.tensor([index for index, label in enumerate(images.labels.tolist()) if label in place])
        if not len(rows):
            raise InputError(f"The {what} split has no image of the kept classes.")
        chosen = images.subset(rows)
        return replace(chosen, labels=torch.tensor([place[label] for label in chosen.labels.tolist()]))

    parts = {
        "train": of(splits.train, "train"),
        "val": of(splits.validation, "validation"),
        "test": of(splits.test, "test"),
    }
    names = tuple(splits.class_names[index] for index in kept)
    note = (
        f"Kept classes: {', '.join(names)} ({len(names)} of {len(splits.class_names)}); the baseline is the original with its "
        "head cut to them, on their images."
    )
    return make_splits(parts, names, (*splits.notes, note))
