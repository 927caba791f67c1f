"""The graph encoder of AGIC: embeddings of kernels from attribution graphs (At-GCs), learned without labels.

AGIC is Zheng et al., Neural Networks 179, 2024. Its full text is not public: this is a reconstruction from the abstract, which
names attribution graphs of kernels, an unsupervised graph encoder and scoring aggregation; their details are secateur's
choices. The objective is Deep Graph Infomax (Veličković et al., ICLR 2019), for batches of graphs of many node types.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...common.errors import InputError, UsageError
from ...common.progress import Progress, silent
from .batch import Links, NodeOrder, collate
from .layout import GraphLayout

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData


EPSILON = 1e-15  # torch-geometric's value, so that the loss is the same
NEARLY_CONSTANT = 1e-6  # relative to a feature's largest value: a smaller spread is rounding
MEMORY_BYTES = 4 * 2**30


@dataclass(frozen=True)
class EncoderSettings:
    """``width`` of the embeddings, ``rounds`` of message passing, and how Deep Graph Infomax is trained (Adam).

    Raises:
        UsageError: a value is out of range.
    """

    width: int = 24
    rounds: int = 2
    steps: int = 300
    batch_size: int = 16
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("width", 1), ("rounds", 0), ("steps", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} of the graph encoder must be at least {least} (got {getattr(self, name)}).")
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(f"learning_rate of the graph encoder must be above 0 (got {self.learning_rate}).")


@dataclass(frozen=True)
class Standardiser:
    """Standardises each feature of a node type over the training graphs to mean 0 and standard deviation 1, constant ones to 0.

    ``means`` and ``factors`` map a node type to float32 ``[F]``.
    """

    means: Mapping[str, Tensor]
    factors: Mapping[str, Tensor]

    @classmethod
    def fit(cls, graphs: Sequence["HeteroData"]) -> "Standardiser":
        """Fit to the training graphs in one pass (running variance: Chan et al., 1983).

        Raises:
            InputError: there are no graphs, or a feature is not finite.
        """
        if not len(graphs):
            raise InputError("There are no attribution graphs to learn from. Give at least one image of each class.")
        counts: dict[str, int] = {}
        means: dict[str, Tensor] = {}
        squares: dict[str, Tensor] = {}
        largest: dict[str, Tensor] = {}
        for index in range(len(graphs)):
            for name, store in graphs[index].node_items():
                x = store["x"].double()
                if not bool(torch.isfinite(x).all()):
                    raise InputError(
                        f"Graph {index} has NaN or infinite features at {name!r}. Check the network's weights."
                    )
                before, count = counts.get(name, 0), counts.get(name, 0) + len(x)
                shift = x.mean(0) - means.get(name, 0)
                squares[name] = (
                    squares.get(name, 0) + (x - x.mean(0)).square().sum(0) + shift**2 * (before * len(x) / count)
                )
                means[name] = means.get(name, 0) + shift * (len(x) / count)
                largest[name] = torch.maximum(largest.get(name, torch.zeros(())), x.abs().amax(0))
                counts[name] = count
        factors = {}
        for name, total in squares.items():
            spread = (total / counts[name]).sqrt()
            factors[name] = torch.where(spread > NEARLY_CONSTANT * largest[name], 1 / spread, 0).float()
        return cls({name: mean.float() for name, mean in means.items()}, factors)

    @property
    def features(self) -> dict[str, int]:
        """The number of features of each node type."""
        return {name: len(mean) for name, mean in self.means.items()}

    def __call__(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Standardise features ``[…, F]`` of each node type."""
        return {name: (x - self.means[name]) * self.factors[name] for name, x in features.items()}


class GraphEncoder(nn.Module):
    """Embeds the nodes of attribution graphs.

    First a projection for each node type; then rounds of ``h_v + relu(norm(W h_v + sum_e W_e sum_u w_uv h_u))`` over edge types
    e in both directions, with signed weights: ``HeteroConv`` of ``GraphConv`` (Morris et al., AAAI 2019); finally a
    projection of the nodes before, between and after the rounds, so that message passing does not smooth out a kernel's own
    features (jumping knowledge: Xu et al., ICML 2018).
    """

    def __init__(
        self, layout: GraphLayout, features: Mapping[str, int], settings: EncoderSettings | None = None
    ) -> None:
        """``features`` gives the number of features of each node type, as :attr:`Standardiser.features` does."""
        super().__init__()
        self.layout, self.order = layout, NodeOrder(layout)
        self.settings = settings = settings or EncoderSettings()
        width = settings.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.projections = nn.ModuleList(nn.Linear(features[name], width) for name in self.order.names)
            self.rounds = nn.ModuleList(_Round(self.order, width) for _ in range(settings.rounds))
            self.joined = nn.Linear((settings.rounds + 1) * width, width)

    def forward(self, features: Mapping[str, Tensor], links: Links) -> Tensor:
        """Standardised features ``[graphs, nodes, F]`` of each node type to embeddings ``[graphs, all nodes, width]``."""
        projected = zip(self.projections, self.order.names, strict=True)
        hidden = torch.cat([projection(features[name]) for projection, name in projected], 1)
        seen = [hidden]
        for layer in self.rounds:
            hidden = layer(hidden, links)
            seen.append(hidden)
        embedded: Tensor = self.joined(torch.cat(seen, 2))
        return embedded


class _Round(nn.Module):
    """One round of message passing; a node type's linear map reads the concatenated messages of its edge types, then the
    node.
    """

    def __init__(self, order: NodeOrder, width: int) -> None:
        super().__init__()
        self.order = order
        self.maps = nn.ModuleList(nn.Linear((count + 1) * width, width) for count in order.incoming)
        self.norm = nn.LayerNorm(width)

    def forward(self, hidden: Tensor, links: Links) -> Tensor:
        return hidden + F.relu(self.norm(self.messages(hidden, links)))

    def messages(self, hidden: Tensor, links: Links) -> Tensor:
        """``W h_v + sum_e W_e sum_u w_uv h_u`` for all nodes, ``[graphs, nodes, width]``."""
        order = self.order
        # Split rather than sliced, since the gradient of each slice would be as large as the whole tensor.
        brought = torch.split(links.gather(hidden, order.slot_count), order.slots, 1)
        messages = []
        for linear, arrived, own in zip(self.maps, brought, torch.split(hidden, order.sizes, 1), strict=True):
            graphs, nodes, width = own.shape
            by_edge_type = arrived.view(graphs, arrived.shape[1] // nodes, nodes, width).transpose(1, 2)
            messages.append(linear(torch.cat([by_edge_type.flatten(2), own], 2)))
        return torch.cat(messages, 1)


def infomax_loss(positive: Tensor, negative: Tensor, weight: Tensor) -> Tensor:
    """Deep Graph Infomax (Veličković et al., ICLR 2019, eq. 1) of a batch of graphs; a scalar, in nats.

    With ``s_g = sigmoid(mean_v h_v)`` over all nodes of a graph and ``D(h, s) = sigmoid(h' M s)`` it is ``-mean log D(h_v, s_g)
    - mean log(1 - D(n_v, s_g))``. Since a kernel's parameters are the same in every graph, corrupted nodes can be recognised
    almost without the image. Therefore, with several graphs, the second term is the mean of this and of the same term for true
    nodes with the summary of the next image in the batch.

    Args:
        positive: embeddings ``[graphs, nodes, width]``.
        negative: embeddings of corrupted graphs, of the same shape.
        weight: ``M``, ``[width, width]``.
    """
    projected = torch.sigmoid(positive.mean(1)) @ weight.T  # M s for each graph

    def against(nodes: Tensor, summaries: Tensor) -> Tensor:
        return torch.sigmoid(torch.einsum("gvw,gw->gv", nodes, summaries))

    true = -torch.log(against(positive, projected) + EPSILON).mean()
    corrupted = -torch.log(1 - against(negative, projected) + EPSILON).mean()
    if len(positive) == 1:
        return true + corrupted
    other = -torch.log(1 - against(positive, projected.roll(1, 0)) + EPSILON).mean()
    return true + (corrupted + other) / 2


def pretrain(
    encoder: GraphEncoder,
    standardiser: Standardiser,
    graphs: Sequence["HeteroData"],
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> tuple[float, ...]:
    """Train the encoder in place by Deep Graph Infomax on graphs without their labels; returns the loss of each step.

    The corruption permutes the feature rows within each node type and graph, and leaves the links. The result is reproducible
    on the CPU of one machine, by the seed in the encoder's settings.
    """
    settings = encoder.settings
    generator = torch.Generator().manual_seed(settings.seed)
    bound = settings.width**-0.5
    weight = nn.Parameter(torch.empty(settings.width, settings.width).uniform_(-bound, bound, generator=generator))
    weight.data = weight.data.to(device)
    optimizer = torch.optim.Adam([*encoder.to(device).train().parameters(), weight], lr=settings.learning_rate)
    losses: list[float] = []
    while len(losses) < settings.steps:
        for rows in torch.split(torch.randperm(len(graphs), generator=generator), settings.batch_size):
            batch = collate([graphs[index] for index in rows.tolist()], encoder.layout, encoder.order)
            features, links = standardiser(batch.features), batch.links.to(device)
            corrupted = _on(_permuted(features, generator), device)
            positive, negative = encoder(_on(features, device), links), encoder(corrupted, links)
            loss = infomax_loss(positive, negative, weight)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
            progress(len(losses), settings.steps)
            if len(losses) == settings.steps:
                break
    encoder.eval()
    return tuple(losses)


def _permuted(features: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """The rows of each graph in a separate random order, within each node type."""
    mixed = {}
    for name, x in features.items():
        order = torch.rand(x.shape[:2], generator=generator).argsort(1)
        mixed[name] = x.gather(1, order.unsqueeze(2).expand_as(x))
    return mixed


def _on(features: Mapping[str, Tensor], device: str) -> dict[str, Tensor]:
    return {name: x.to(device) for name, x in features.items()}


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of graphs: ``values`` ``[graphs, all nodes, width]``, float32 or, to save memory, float16.

    ``nodes`` maps a node type to its number of nodes, in the order of ``values``; ``kinds`` maps it to ``kernel``, ``join`` or
    ``class``. ``labels`` and ``predictions`` are int64 ``[graphs]``, ``outputs`` class scores ``[graphs, classes]``.
    """

    values: Tensor
    nodes: Mapping[str, int]
    kinds: Mapping[str, str]
    labels: Tensor
    predictions: Tensor
    outputs: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, name: str) -> Tensor:
        """A node type's embeddings, ``[graphs, nodes, width]``."""
        parts = torch.split(self.values, list(self.nodes.values()), 1)
        return dict(zip(self.nodes, parts, strict=True))[name]

    def batches(self, size: int) -> Iterator[Tensor]:
        """The indices of the graphs, ``size`` at a time."""
        return iter(torch.split(torch.arange(len(self)), size))


@torch.no_grad()
def embed(
    encoder: GraphEncoder,
    standardiser: Standardiser,
    graphs: Sequence["HeteroData"],
    *,
    device: str = "cpu",
    progress: Progress = silent,
    memory_bytes: int = MEMORY_BYTES,
) -> Embeddings:
    """Embed all graphs in float32, or in float16 if float32 would need more than ``memory_bytes``.

    Raises:
        InputError: there are no graphs, or not even float16 fits.
    """
    layout, settings = encoder.layout, encoder.settings
    if not len(graphs):
        raise InputError("There are no attribution graphs to embed. Give at least one image.")
    numbers = len(graphs) * encoder.order.nodes * settings.width
    if 2 * numbers > memory_bytes:
        raise InputError(
            f"The embeddings of {len(graphs)} graphs with {encoder.order.nodes} nodes need {2 * numbers / 2**30:.1f} GiB, "
            f"above {memory_bytes / 2**30:.1f}. Use fewer images or a smaller width."
        )
    storage = torch.float32 if 4 * numbers <= memory_bytes else torch.float16
    values = torch.empty(len(graphs), encoder.order.nodes, settings.width, dtype=storage)
    read: list[tuple[Tensor, Tensor, Tensor]] = []
    encoder.to(device).eval()
    for start in range(0, len(graphs), settings.batch_size):
        rows = range(start, min(start + settings.batch_size, len(graphs)))
        batch = collate([graphs[index] for index in rows], layout, encoder.order)
        features = _on(standardiser(batch.features), device)
        values[rows.start : rows.stop] = encoder(features, batch.links.to(device)).to("cpu", storage)
        read.append((batch.labels, batch.predictions, batch.outputs))
        progress(rows.stop, len(graphs))
    labels, predictions, outputs = (torch.cat(parts) for parts in zip(*read, strict=True))
    return Embeddings(values, layout.nodes, layout.kinds, labels, predictions, outputs)
