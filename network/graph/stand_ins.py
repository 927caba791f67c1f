"""What stands in a network where a layer was cut away whole, so that its ``forward`` runs on unchanged."""

from torch import Tensor, nn
from torch.nn import Parameter


class Subsample(nn.Module):
    """For a layer that has no kernel left: a copy of its input at every ``stride``-th place, unchanged otherwise.

    A copy, because an activation in place may follow, and the input is also that of the branch beside it.
    """

    def __init__(self, stride: tuple[int, int]) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return (x if self.stride == (1, 1) else x[:, :, :: self.stride[0], :: self.stride[1]]).clone()


class Constant(nn.Module):
    """For a convolution that has nothing left to read: ``bias``, ``[C]``, at every place of its output."""

    def __init__(self, bias: Tensor, stride: tuple[int, int]) -> None:
        super().__init__()
        self.bias = Parameter(bias.detach().clone())
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        height, width = (-(-size // step) for size, step in zip(x.shape[2:], self.stride, strict=True))
        return self.bias.view(1, -1, 1, 1).expand(x.shape[0], -1, height, width).clone()
