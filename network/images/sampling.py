"""Seeded, stratified samples."""

import math

import torch
from torch import Tensor


def stratified_split(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of ``count`` items with every class in proportion (largest remainders), and of the rest.

    Both are in seeded random order. If there are more classes than items, ties between classes are broken at random.
    """
    generator = seeded_generator(seed)
    classes = sorted(set(labels.tolist()))
    quotas = {label: count * int((labels == label).sum()) / len(labels) for label in classes}
    sizes = {label: math.floor(quota) for label, quota in quotas.items()}
    if count < len(classes):
        classes = [classes[index] for index in torch.randperm(len(classes), generator=generator).tolist()]
    by_remainder = sorted(classes, key=lambda label: sizes[label] - quotas[label])
    for label in by_remainder[: count - sum(sizes.values())]:
        sizes[label] += 1
    chosen, rest = [], []
    for label in classes:
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        chosen.append(members[: sizes[label]])
        rest.append(members[sizes[label] :])
    first, second = torch.cat(chosen), torch.cat(rest)
    return (
        first[torch.randperm(len(first), generator=generator)],
        second[torch.randperm(len(second), generator=generator)],
    )


def seeded_generator(seed: int) -> torch.Generator:
    """A generator with a seed, on the CPU."""
    return torch.Generator().manual_seed(seed)
