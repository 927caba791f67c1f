import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.common.errors import InputError
from secateur.network.graph.trace import following_norms, reading_points, trace


class Choosy(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Counting(nn.Module):
    def forward(self, x):
        return x * sum(1 for row in x)


@pytest.mark.parametrize("kind", [Choosy, Counting])
def test_control_flow_on_values_is_explained(kind):
    with pytest.raises(InputError, match=rf"{kind.__name__}\.forward cannot be traced"):
        trace(kind())
    assert following_norms(kind()) == {}


class AsksForShapes(nn.Module):
    """Decides on shapes, makes zeros from a batch size, and calls a slice of a Sequential."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace=True)
        )
        self.head = nn.Linear(9, 4)

    def forward(self, x):
        if x.shape[-1] > 8 and x.dim() == 4:
            x = F.avg_pool2d(x, 2)
        y = self.layers[1:](self.layers[0](x))
        zeros = torch.zeros(y.size(0), 3, y.size(2), y.size(3))
        y = torch.cat([y, zeros], 1).mean((2, 3))
        return self.head(y)


def test_decisions_on_shapes_and_tensors_made_from_them_are_traced():
    torch.manual_seed(0)
    module = AsksForShapes().eval()
    traced = trace(module, torch.randn(2, 3, 12, 12))
    for count in (1, 2, 5):  # the batch size is not frozen in
        images = torch.randn(count, 3, 12, 12)
        with torch.no_grad():
            assert torch.equal(traced(images), module(images))
    assert set(reading_points(traced)) == {"layers.0", "layers.2", "head"}
    assert isinstance(torch.zeros(2), torch.Tensor)


def test_decisions_on_values_are_refused_even_with_an_example():
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x) if x.mean((2, 3)).sum() > 0 else x.mean((2, 3))

    with pytest.raises(InputError, match="cannot be traced"):
        trace(Moody(), torch.randn(2, 3, 4, 4))
