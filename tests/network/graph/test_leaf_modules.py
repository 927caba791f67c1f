import torch
from torch.nn import functional as F

from secateur.network.graph.leaf_modules import ZeroPadChannels


def padding(before, after, width):
    pad = ZeroPadChannels(before, after)
    pad.settle(width)
    return pad


def test_padding_shows_its_input_between_zeros():
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(padding(2, 1, 3)(x), F.pad(x, (0, 0, 0, 0, 2, 1)))
    assert torch.equal(ZeroPadChannels(1, 1)(x), F.pad(x, (0, 0, 0, 0, 1, 1)))


def test_padding_without_some_inputs_and_outputs():
    x = torch.randn(2, 4, 3, 3)
    pad = padding(1, 2, 4)
    pad.drop_inputs([1, 2])
    assert pad.in_channels == 2
    assert pad.out_channels == 7
    wanted = F.pad(x.index_fill(1, torch.tensor([1, 2]), 0), (0, 0, 0, 0, 1, 2))
    assert torch.equal(pad(x[:, [0, 3]]), wanted)
    pad.drop_outputs([0, 2, 4])
    assert torch.equal(pad(x[:, [0, 3]]), wanted[:, [1, 3, 5, 6]])
    pad.drop_inputs([0])
    assert torch.equal(pad(x[:, [3]]), wanted.index_fill(1, torch.tensor([1]), 0)[:, [1, 3, 5, 6]])


def test_padding_that_lost_its_own_zeros_still_counts_right():
    """Where outputs that go happen to be as many as were padded, widths alone would look untouched."""
    x = torch.randn(1, 4, 2, 2)
    pad = padding(1, 1, 4)
    pad.drop_outputs([0, 2])
    assert torch.equal(pad(x), F.pad(x, (0, 0, 0, 0, 1, 1))[:, [1, 3, 4, 5]])
