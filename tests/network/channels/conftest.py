"""Tiny and large networks with an example input."""

import pytest
import torch

TINY = ("padded", "inverted", "grouped", "dense", "gated", "chain", "plain")


@pytest.fixture
def subject(tiny, large):
    def build(name, seed=0):
        if name in TINY:
            return tiny(name, seed), torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
        return large(name, seed), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))

    return build
