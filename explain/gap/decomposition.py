"""Hierarchical decomposition of a decision into the kernels that support it (Cheng et al., IJCV 131(5), 2023, section 3).

A decision F is explained by the maps of an earlier layer: ``A = G * F^l`` with ``G = dF/dF^l`` (eqs. 1 to 3), a kernel's
contribution ``alpha_k`` is the mean of ``A_k`` over places (eq. 4), its strongest place is where ``A_k`` is largest (eq. 5).
The strongest kernels at their strongest places are decisions themselves, explained by the layer before, and so on down.
The equations are in ``descent.py``.
"""

from dataclasses import replace

from torch import Tensor

from ...common.errors import InputError
from ...network.graph.feature_points import find_stages, named_points
from ...network.graph.trace import trace
from ...network.hooks import frozen
from ...network.images.images import Images
from ...network.images.pictures import in_words
from ...network.network import Network
from ..kernel_maps import fill_values, kernel_maps, point_maps
from .decisions import ClassDecision, KernelDecision
from .descent import Descent
from .levels import Decomposition, DecompositionSettings


def decompose(
    network: Network,
    inputs: Tensor,
    decision: ClassDecision | KernelDecision | None = None,
    settings: DecompositionSettings | None = None,
    *,
    device: str = "cpu",
) -> Decomposition:
    """Decompose a decision for each image, stage by stage.

    Args:
        network: any network that can be traced.
        inputs: normalised images, ``[n, C, H, W]``; the maps of all points are held at once, so pass one batch at a time.
        decision: the class predicted for each image, if None.
        settings: see there.
        device: where to compute; results are on the CPU.

    Source: Cheng et al. 2023, eqs. 1 to 5 and section 3.2.

    Raises:
        InputError: the network cannot be traced or has no stages, a layer does not exist or outputs no map, a kernel or a
            place is outside it, or no layer of the chain lies before the decision.
    """
    return Decomposer(network, settings, device=device)(inputs, decision)


class Decomposer:
    """:func:`decompose` for many batches: the network is traced once.

    Raises:
        InputError: the network cannot be traced or has no stages, a layer does not exist or outputs no map.
    """

    def __init__(self, network: Network, settings: DecompositionSettings | None = None, *, device: str = "cpu") -> None:
        self.network, self.settings = network, settings or DecompositionSettings()
        self.example = network.example().to(device)
        self.view = trace(network.module, network.example()).to(device)
        self.device = device
        with frozen(self.view):
            if self.settings.layers is None:
                self.points = find_stages(self.view, self.example)
            else:
                self.points = named_points(self.view, self.example, self.settings.layers)

    def subtract_averages(self, images: Images, batch_size: int) -> None:
        """Measure mean activations over these images and their places, and use them as the baseline (``settings.averages``)."""
        points, layers = map(point_maps, self.points), kernel_maps(self.view).values() if self.settings.between else ()
        with frozen(self.view):
            of_points, of_layers = (
                fill_values(self.view, list(maps), images, "mean", batch_size, self.device) for maps in (points, layers)
            )
        self.settings = replace(self.settings, averages=of_points, layer_averages=of_layers)

    def __call__(self, inputs: Tensor, decision: ClassDecision | KernelDecision | None = None) -> Decomposition:
        """Decompose the decisions for normalised images ``[n, C, H, W]``; see :func:`decompose`."""
        if tuple(inputs.shape[1:]) != self.network.input_shape:
            wanted, got = in_words(self.network.input_shape), in_words(inputs.shape[1:])
            raise InputError(f"The network takes images of {wanted} (got {got}). Resize them.")
        with frozen(self.view):
            return Descent(self.view, self.example, self.points, self.settings, inputs.to(self.device)).run(decision)
