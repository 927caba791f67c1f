"""Stand-ins for layers that were removed whole, so that the network's ``forward`` runs unchanged."""

from torch import Tensor, nn
from torch.nn import Parameter


class Subsample(nn.Module):
    """Stands in for a layer without kernels: a copy of its input at every ``stride``-th position.

    A copy, because an in-place activation may follow and another branch may read the same input.
    """

    def __init__(self, stride: tuple[int, int]) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return (x if self.stride == (1, 1) else x[:, :, :: self.stride[0], :: self.stride[1]]).clone()


class Constant(nn.Module):
    """Stands in for a convolution without input channels: ``bias``, ``[C]``, at every position of its output."""

    def __init__(self, bias: Tensor, stride: tuple[int, int]) -> None:
        super().__init__()
        self.bias = Parameter(bias.detach().clone())
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        height, width = (-(-size // step) for size, step in zip(x.shape[2:], self.stride, strict=True))
        return self.bias.view(1, -1, 1, 1).expand(x.shape[0], -1, height, width).clone()
