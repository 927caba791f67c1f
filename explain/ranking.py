"""From a ranker's scores to scores of prunable units."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.errors import InputError
from ..network.channels.group import ChannelGroup
from . import baselines, consensus  # noqa: F401 (importing a ranker's module registers it)
from .agic import ranker as _agic  # noqa: F401
from .attribution import rankers as _attribution  # noqa: F401
from .faithfulness import ablation as _ablation  # noqa: F401
from .gap import rankers as _gap  # noqa: F401
from .picnn import ranker as _picnn  # noqa: F401
from .registry import get_ranker
from .scores import KernelScores, RankingTask
from .shapley import ranker as _shapley  # noqa: F401


@dataclass(frozen=True)
class UnitScores:
    """One score per unit of a group, float64 ``[units]``; ``counted`` are the layers whose scores went in."""

    method: str
    values: Tensor
    counted: tuple[str, ...]


def members_of(method: str) -> tuple[str, ...]:
    """The methods that a ranking stands on: itself, those with commas between them, or the consensus's.

    Raises:
        UsageError: one does not exist, or they make no consensus.
    """
    names = tuple(name.strip() for name in method.split(","))
    if len(names) > 1:
        consensus.check_members(names)
        return names
    return consensus.MEMBERS if get_ranker(method).name == "consensus" else names


def rank_kernels(task: RankingTask, method: str = "gap") -> KernelScores:
    """Score every kernel of the network by a registered method, or by several, with commas between them, in one ranking.

    Raises:
        UsageError: no such method, or no such several.
        InputError: there are no images, or some have no label (-1).
        InputError: the method cannot run on this network, or gave NaN.

    Examples:
        >>> import secateur
        >>> network = secateur.load_model("digits")
        >>> images = secateur.load_images("digits", network.preprocessing)
        >>> task = secateur.RankingTask(network, images.train.sample(200, seed=0))
        >>> scores = secateur.rank_kernels(task, "gap")
        >>> scores.layers["block3.conv1"].shape
        torch.Size([64])
    """
    members = members_of(method)
    needy = len(members) > 1 or get_ranker(method).needs != "weights"
    if needy and (not len(task.images) or int(task.images.labels.min()) < 0):
        what = (
            "some of them have no label; give them the network's with label_images"
            if len(task.images)
            else "there are none"
        )
        raise InputError(f"Ranking by {method} needs calibration images with labels, and {what}.")
    return consensus.score_together(task, members) if len(members) > 1 else get_ranker(method).score(task)


def score_units(groups: Sequence[ChannelGroup], scores: KernelScores) -> dict[str, UnitScores]:
    """Scores of each open group's units: the sum over its layers of the scores normalised to mean 1 within each layer.

    Layers without a score, and layers whose scores are all zero, are left out.

    Raises:
        InputError: the scores are of another network, or the method scored no layer of a group.

    Examples:
        >>> import secateur
        >>> network = secateur.load_model("digits")
        >>> images = secateur.load_images("digits", network.preprocessing)
        >>> scores = secateur.rank_kernels(secateur.RankingTask(network, images.train.sample(200, seed=0)), "gap")
        >>> units = secateur.score_units(secateur.find_groups(network.module, network.example()), scores)
        >>> units["stem.0"].counted  # both layers that make the stream's channels
        ('stem.0', 'block1.conv2')
    """
    result = {}
    for group in groups:
        if group.locked:
            continue
        values = torch.zeros(group.units, dtype=torch.float64)
        counted = []
        for member in group.producers:
            layer = scores.layers.get(member.layer)
            if layer is None:
                continue
            if len(layer) != member.width:
                raise InputError(
                    f"The scores have {len(layer)} kernels for {member.layer}, the network {member.width}: another network's."
                )
            mean = float(layer.double().abs().mean())
            if mean == 0:
                continue
            normalised = layer.double() / mean
            values += torch.stack([normalised[list(channels)].sum() for channels in member.channels])
            counted.append(member.layer)
        if not counted and not any(member.layer in scores.layers for member in group.producers):
            names = ", ".join(member.layer for member in group.producers)
            raise InputError(
                f"{scores.method} scored none of {names}, so nothing says which of its units go. Use another."
            )
        result[group.name] = UnitScores(scores.method, values, tuple(counted))
    return result
