import pytest
import torch

from secateur.common.errors import InputError
from secateur.explain.evidence.regions import Box, strong_pixels, supporting_region


def test_supporting_region_is_where_the_gradient_is_strong():
    gradient = torch.zeros(2, 6, 8)
    gradient[0, 1, 2], gradient[1, 4, 3], gradient[1, 5, 7] = -1.0, 0.5, 0.05
    assert supporting_region(gradient) == Box(2, 1, 8, 6)
    assert supporting_region(gradient, 0.1) == Box(2, 1, 4, 5)
    assert supporting_region(gradient, 0.5) == Box(2, 1, 3, 2)
    with pytest.raises(InputError, match="zero at every pixel"):
        supporting_region(torch.zeros(2, 6, 8))


def test_strong_pixels_are_above_half_of_the_maximum():
    activation = torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    wanted = torch.tensor([[False, False], [False, True]]).repeat_interleave(2, 0).repeat_interleave(2, 1)
    enlarged = strong_pixels(activation, 4, 4)
    assert torch.equal(enlarged[::3, ::3], wanted[::3, ::3])
    assert torch.equal(strong_pixels(activation, 2, 2), torch.tensor([[False, False], [False, True]]))
    assert not strong_pixels(-activation, 4, 4).any()
    assert not strong_pixels(torch.zeros(2, 2), 4, 4).any()
