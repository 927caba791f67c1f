"""Scores of prunable units, from a ranker's scores of kernels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.errors import InputError
from ..network.channels.group import ChannelGroup
from .scores import KernelScores


@dataclass(frozen=True)
class UnitScores:
    """One score per unit of a group, float64 ``[units]``; ``counted`` are the layers whose scores were used."""

    method: str
    values: Tensor
    counted: tuple[str, ...]


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
                f"{scores.method} scored none of {names}, so the units of this group cannot be ranked. Use another ranking."
            )
        result[group.name] = UnitScores(scores.method, values, tuple(counted))
    return result
