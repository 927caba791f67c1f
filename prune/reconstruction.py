"""Reconstruction: what reads a cut layer learns, by least squares, to make of what is left what it made of the whole.

Layer by layer in network order, inputs from the network as cut and repaired so far, targets from the original, as in channel
pruning by least squares (He et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017). Where a layer
feeds a residual join, its target is the original's value at the join less what the other branch gives in the cut network, so
that errors do not pile up along the stream. No label is read.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ..network.channels import Cut, followable
from ..network.images import Images
from ..network.model import Network
from ..network.trace import Add, trace

MEMORY_BYTES = 2 * 2**30
"""What the activations of both networks may take; more images than fit are left out, and the report says how many took part."""
LIVE_MAPS = 8


@dataclass(frozen=True)
class LayerFit:
    """One layer's fit. Errors are squared, relative to the variance of the target, on the places it was fitted on.

    ``before`` is the error of the kept weights with the best constant; ``conditioning`` the ratio of the largest to the
    smallest squared diagonal entry of the Cholesky factor; ``form`` primal or dual; ``joined`` whether the target was a join's.
    """

    layer: str
    before: float
    after: float
    conditioning: float
    form: str
    joined: bool


@dataclass(frozen=True)
class ReconstructionSettings:
    """``ridge`` towards the kept weights, as a fraction of the mean squared input; ``places`` sampled per image, at most."""

    ridge: float = 3e-3
    places: int = 256
    seed: int = 0


def reconstruct(
    original: Network,
    pruned: Network,
    images: Images,
    settings: ReconstructionSettings | None = None,
    *,
    device: str = "cpu",
    batch_size: int = 64,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Network, tuple[LayerFit, ...], int]:
    """Fit every convolution and linear layer behind the cut; both networks given stay as they are.

    Layers that are called several times, transposed, or padded otherwise than with zeros keep their weights.

    Returns:
        The repaired network, the fits in network order, and the number of images that took part.

    Raises:
        InputError: the network cannot be traced.
    """
    settings = settings or ReconstructionSettings()
    module = followable(pruned.module, pruned.example(1))
    whole = Activations(trace(followable(original.module, original.example(1)), original.example()).to(device))
    small = Activations(trace(module, original.example()).to(device))
    images = images.subset(torch.arange(min(len(images), affordable_images(original))))
    whole.feed(images, batch_size)
    small.feed(images, batch_size)
    cut = pruned.cuts[-1]
    wanted = _layers_behind(small.view, cut)
    fits = []
    with torch.no_grad():
        for node in small.view.graph.nodes:
            if node.name in wanted:
                fits.append(_fit(whole, small, node, module, cut, settings))
                progress(len(fits), len(wanted))
            if len(fits) == len(wanted):
                break
            small.get(node)
    return replace(pruned, module=module.eval()), tuple(fits), len(images)


class Activations:
    """The outputs of a traced network's nodes over all batches, made when asked for and dropped after their last reader."""

    def __init__(self, view: fx.GraphModule) -> None:
        self.view = view.eval()
        self.nodes = {node.name: node for node in view.graph.nodes}
        self._values: dict[fx.Node, list[Any]] = {}
        self._readers = {node: len(node.users) for node in view.graph.nodes}
        self._held: Counter[fx.Node] = Counter()
        self._inputs: list[Tensor] = []

    def feed(self, images: Images, batch_size: int) -> None:
        device = next(self.view.parameters()).device
        self._inputs = [batch.to(device) for batch, _ in images.batches(batch_size)]

    def get(self, node: fx.Node) -> list[Any]:
        """One value per batch."""
        if node in self._values:
            return self._values[node]
        for source in node.all_input_nodes:
            self.get(source)
        self._values[node] = [self.run(node, batch) for batch in range(len(self._inputs))]
        for source in node.all_input_nodes:
            self._readers[source] -= 1
            self._forget(source)
        return self._values[node]

    def hold(self, node: fx.Node) -> None:
        """Keep a node's values until they are released."""
        self._held[node] += 1

    def release(self, node: fx.Node) -> None:
        self._held[node] -= 1
        self._forget(node)

    def _forget(self, node: fx.Node) -> None:
        if self._readers[node] <= 0 and self._held[node] <= 0:
            self._values.pop(node, None)

    @property
    def batches(self) -> int:
        return len(self._inputs)

    def read(self, node: fx.Node, batch: int, changed: Mapping[fx.Node, list[Any]] = MappingProxyType({})) -> Any:
        """A node's value for one batch: a changed one where there is one, else its own, which must be held."""
        return changed[node][batch] if node in changed else self._values[node][batch]

    def run(self, node: fx.Node, batch: int, changed: Mapping[fx.Node, list[Any]] = MappingProxyType({})) -> Any:
        """Run one node on one batch."""
        if node.op == "placeholder":
            return self._inputs[batch]
        arguments = fx.node.map_arg(node.args, lambda source: self.read(source, batch, changed))
        options = fx.node.map_arg(node.kwargs, lambda source: self.read(source, batch, changed))
        if node.op == "call_module":
            return self.view.get_submodule(str(node.target))(*arguments, **options)
        if node.op == "call_function":
            return node.target(*arguments, **options)  # type: ignore[operator]
        if node.op == "call_method":
            return getattr(arguments[0], str(node.target))(*arguments[1:], **options)
        if node.op == "get_attr":
            holder: Any = self.view
            for part in str(node.target).split("."):
                holder = getattr(holder, part)
            return holder
        return arguments[0]


def _layers_behind(view: fx.GraphModule, cut: Cut) -> set[str]:
    """Names of the nodes to fit: layers that lost inputs, and layers whose inputs are no longer the original's."""
    modules = dict(view.named_modules())
    calls = Counter(node.target for node in view.graph.nodes if node.op == "call_module")
    changed: set[fx.Node] = set()
    wanted = set()
    for node in view.graph.nodes:
        lost = node.op == "call_module" and node.target in cut and bool(cut[node.target].in_removed)
        if lost or any(source in changed for source in node.all_input_nodes):
            changed.add(node)
            if node.op == "call_module" and calls[node.target] == 1 and can_fit(modules[node.target]):
                wanted.add(node.name)
    return wanted


def can_fit(layer: nn.Module) -> bool:
    """Whether a layer is of a kind that least squares can fit here."""
    if isinstance(layer, nn.Conv2d):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


def _fit(
    whole: Activations,
    small: Activations,
    node: fx.Node,
    module: nn.Module,
    cut: Cut,
    settings: ReconstructionSettings,
) -> LayerFit:
    name = str(node.target)
    layer: Any = small.view.get_submodule(name)
    part = cut.get(name)
    gone = set(part.out_removed) if part else set()
    original: Any = whole.view.get_submodule(name)
    kept = torch.tensor([channel for channel in range(original.weight.shape[0]) if channel not in gone])
    norm_name = _norm_behind(small.view, node)
    join = _join_behind(node, norm_name, small.view)
    targets = _targets(whole, small, node, kept, norm_name, join)
    inputs = small.get(node.all_input_nodes[0])
    problem = Problem(layer, settings)
    for index, (seen, target) in enumerate(zip(inputs, targets, strict=True)):
        problem.add(seen, target, index)
    weight, constant, fit = problem.solve()
    for root in (small.view, module):
        _write(root, name, weight, constant, norm_name, whole.view, kept)
    return LayerFit(name, fit[0], fit[1], fit[2], fit[3], join is not None)


def _norm_behind(view: fx.GraphModule, node: fx.Node) -> str:
    if len(node.users) != 1:
        return ""
    reader = next(iter(node.users))
    if reader.op != "call_module":
        return ""
    norm = view.get_submodule(str(reader.target))
    return str(reader.target) if isinstance(norm, _BatchNorm) and norm.running_mean is not None else ""


def _join_behind(node: fx.Node, norm_name: str, view: fx.GraphModule) -> tuple[fx.Node, fx.Node] | None:
    """(the sum that the layer feeds, directly or through its norm; the other branch), if the other comes without it."""
    last = next(iter(node.users)) if norm_name else node
    if len(last.users) != 1:
        return None
    join = next(iter(last.users))
    if join.op != "call_module" or not isinstance(view.get_submodule(str(join.target)), Add):
        return None
    others = [source for source in join.args if source is not last]
    if len(others) != 1 or not isinstance(others[0], fx.Node) or _depends(others[0], node):
        return None
    return join, others[0]


def _depends(node: fx.Node, on: fx.Node) -> bool:
    pending, seen = [node], set()
    while pending:
        current = pending.pop()
        if current is on:
            return True
        if current not in seen:
            seen.add(current)
            pending += current.all_input_nodes
    return False


def _targets(
    whole: Activations,
    small: Activations,
    node: fx.Node,
    kept: Tensor,
    norm_name: str,
    join: tuple[fx.Node, fx.Node] | None,
) -> Iterator[Tensor]:
    """What the layer should give, batch by batch, ``[n, C_out kept, ...]``."""
    if join is None:
        own = whole.nodes[node.name]
        whole.hold(own)
        for value in whole.get(own):
            yield value.index_select(-1 if value.dim() == 3 else 1, kept.to(value.device))
        whole.release(own)
        return
    total = whole.nodes[join[0].name]
    whole.hold(total)
    small.hold(join[1])
    norm: Any = whole.view.get_submodule(norm_name) if norm_name else None
    for value, other in zip(whole.get(total), small.get(join[1]), strict=True):
        wanted = value.index_select(1, kept.to(value.device)) - other
        yield wanted if norm is None else _before_norm(wanted, norm, kept.to(value.device))
    whole.release(total)
    small.release(join[1])


def _before_norm(value: Tensor, norm: Any, kept: Tensor) -> Tensor:
    """What a BatchNorm in evaluation mode must be given to put out ``value``; zero scales ask for their mean."""
    shape = (1, -1, *([1] * (value.dim() - 2)))
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = norm.bias if norm.bias is not None else torch.zeros_like(norm.running_mean)
    scale, shift, mean = scale[kept], shift[kept], norm.running_mean[kept]
    usable = scale.abs() > 1e-6
    inverse = torch.where(usable, 1 / torch.where(usable, scale, torch.ones_like(scale)), torch.zeros_like(scale))
    result: Tensor = (value - shift.view(shape)) * inverse.view(shape) + mean.view(shape)
    return result


class Problem:
    """Centred ridge regression of a layer's outputs on its inputs, from statistics that stream over batches."""

    def __init__(self, layer: Any, settings: ReconstructionSettings) -> None:
        self.layer, self.settings = layer, settings
        self.groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        self.kept = layer.weight.detach().flatten(1).unflatten(0, (self.groups, -1))  # [groups, out, features]
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._count = 0
        self._shift: tuple[Tensor, Tensor] | None = None
        self._sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))

    def add(self, seen: Tensor, target: Tensor, batch: int) -> None:
        """Take in one batch: the layer's input and what it should give."""
        rows = self._features(seen, target, batch)
        features = rows[0].shape[2]
        if self._count + rows[0].shape[1] <= features:
            self._rows.append(rows)
        elif self._rows:
            for earlier in self._rows:
                self._accumulate(*earlier)
            self._rows = []
        self._count += rows[0].shape[1]
        if not self._rows:
            self._accumulate(*rows)

    def solve(self, features: Tensor | None = None) -> tuple[Tensor, Tensor, tuple[float, float, float, str]]:
        """The weight in the layer's shape, the constant per output, and (before, after, conditioning, form).

        Args:
            features: fit only these of a kernel's weights (indices within a group); the others become zero.
        """
        if features is None:
            features = torch.arange(self.kept.shape[2], device=self.kept.device)
        if self._rows:
            return self._solve_dual(features)
        count = self._count
        assert self._shift is not None
        mean_x, mean_y = self._sums["x"] / count, self._sums["y"] / count
        mean_x = mean_x[:, features]
        gram = self._sums["xx"][:, features][:, :, features] - count * mean_x.unsqueeze(2) * mean_x.unsqueeze(1)
        cross = self._sums["xy"][:, features] - count * mean_x.unsqueeze(2) * mean_y.unsqueeze(1)
        energy = self._sums["yy"] - count * mean_y.square()
        start = self.kept[:, :, features].double()
        ridge = self.settings.ridge * gram.diagonal(dim1=1, dim2=2).mean(1)
        ridge = ridge.clamp(min=1e-12 * max(1.0, float(gram.abs().max()))).view(-1, 1, 1)
        eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        factor, failed = torch.linalg.cholesky_ex(gram + ridge * eye)
        if bool(failed.any()):
            factor = torch.linalg.cholesky(
                gram + (ridge + 1e-6 * gram.diagonal(dim1=1, dim2=2).amax(1).view(-1, 1, 1)) * eye
            )
        change = torch.cholesky_solve(cross - gram @ start.mT, factor).mT
        solved = start + change

        def error(weight: Tensor) -> float:
            explained = 2 * (weight.mT * cross).sum() - ((gram @ weight.mT) * weight.mT).sum()
            return float((energy.sum() - explained) / energy.sum().clamp(min=1e-30))

        diagonal = factor.diagonal(dim1=1, dim2=2).square()
        conditioning = float((diagonal.amax(1) / diagonal.amin(1).clamp(min=1e-300)).max())
        shift_x, shift_y = (value.double() for value in self._shift)
        return self._result(
            solved,
            mean_x + shift_x[:, features],
            mean_y + shift_y,
            (error(start), error(solved), conditioning, "primal"),
            features,
        )

    def _solve_dual(self, features: Tensor) -> tuple[Tensor, Tensor, tuple[float, float, float, str]]:
        x = torch.cat([rows[0][:, :, features] for rows in self._rows], 1).double()
        y = torch.cat([rows[1] for rows in self._rows], 1).double()
        mean_x, mean_y = x.mean(1), y.mean(1)
        x, y = x - mean_x.unsqueeze(1), y - mean_y.unsqueeze(1)
        start = self.kept[:, :, features].double()
        rest = y - x @ start.mT
        kernel = x @ x.mT
        ridge = (self.settings.ridge * x.square().sum(1).mean(1)).clamp(min=1e-12).view(-1, 1, 1)
        eye = torch.eye(kernel.shape[1], dtype=x.dtype, device=x.device)
        factor = torch.linalg.cholesky(kernel + ridge * eye)
        solved = start + (x.mT @ torch.cholesky_solve(rest, factor)).mT
        energy = y.square().sum().clamp(min=1e-30)
        after = float((y - x @ solved.mT).square().sum() / energy)
        diagonal = factor.diagonal(dim1=1, dim2=2).square()
        conditioning = float((diagonal.amax(1) / diagonal.amin(1).clamp(min=1e-300)).max())
        return self._result(
            solved, mean_x, mean_y, (float(rest.square().sum() / energy), after, conditioning, "dual"), features
        )

    def _result(
        self, solved: Tensor, mean_x: Tensor, mean_y: Tensor, fit: tuple[float, float, float, str], features: Tensor
    ) -> tuple[Tensor, Tensor, tuple[float, float, float, str]]:
        constant = mean_y - (solved @ mean_x.unsqueeze(2)).squeeze(2)
        weight = torch.zeros_like(self.kept)
        weight[:, :, features] = solved.float()
        return weight.flatten(0, 1).view(self.layer.weight.shape), constant.flatten().float(), fit

    def _accumulate(self, x: Tensor, y: Tensor) -> None:
        if self._shift is None:  # sums about a first mean lose no digits to large averages
            self._shift = (x.mean(1), y.mean(1))
        x, y = x - self._shift[0].unsqueeze(1), y - self._shift[1].unsqueeze(1)
        for key, value in (
            ("x", x.sum(1)),
            ("y", y.sum(1)),
            ("xx", x.mT @ x),
            ("xy", x.mT @ y),
            ("yy", y.square().sum(1)),
        ):
            self._sums[key] = self._sums[key].to(value.device) + value.double()

    def _features(self, seen: Tensor, target: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Rows ``[groups, samples, features]`` and ``[groups, samples, outputs]`` of one batch, at sampled places."""
        if isinstance(self.layer, nn.Linear):
            return seen.reshape(1, -1, seen.shape[-1]), target.reshape(1, -1, target.shape[-1])
        layer = self.layer
        patches = F.unfold(seen, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        target = target.flatten(2)
        places = patches.shape[2]
        if places > self.settings.places:
            generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + batch)
            chosen = torch.randperm(places, generator=generator)[: self.settings.places].to(patches.device)
            patches, target = patches[:, :, chosen], target[:, :, chosen]
        x = patches.view(len(patches), self.groups, -1, patches.shape[2]).permute(1, 0, 3, 2).flatten(1, 2)
        y = target.view(len(target), self.groups, -1, target.shape[2]).permute(1, 0, 3, 2).flatten(1, 2)
        return x, y


def _write(
    root: nn.Module,
    name: str,
    weight: Tensor,
    constant: Tensor,
    norm_name: str,
    whole: fx.GraphModule,
    kept: Tensor,
) -> None:
    """Put a fitted weight into its layer, and the constant into its bias or the mean of the BatchNorm behind it."""
    layer: Any = root.get_submodule(name)
    device = layer.weight.device
    layer.weight.copy_(weight)
    constant = constant.to(device)
    if norm_name:
        norm: Any = root.get_submodule(norm_name)
        source: Any = whole.get_submodule(norm_name)
        mean = source.running_mean.to(device)[kept.to(device)]
        if layer.bias is None:
            norm.running_mean.copy_(mean - constant)
            return
        norm.running_mean.copy_(mean)
    if layer.bias is None:
        layer.register_parameter("bias", nn.Parameter(constant.clone()))
    else:
        layer.bias.copy_(constant)


def affordable_images(network: Network) -> int:
    """How many images' activations fit into ``MEMORY_BYTES``."""
    largest = 0

    def hook(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel() * output.element_size())

    handles = [child.register_forward_hook(hook) for child in network.module.modules() if not list(child.children())]
    try:
        with torch.no_grad():
            network.module(network.example(1))
    finally:
        for handle in handles:
            handle.remove()
    return max(16, MEMORY_BYTES // (LIVE_MAPS * max(1, largest)))
