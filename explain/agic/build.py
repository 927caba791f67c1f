"""Build attribution graphs (At-GCs): one forward pass per batch of images, Shapley values, and one file per batch."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, fx

from ...common.errors import InputError, UsageError
from ...common.files import read_json, replacing, sha256_json, write_json
from ...common.progress import Progress, silent
from ...network.graph.channel_origins import Site
from ...network.graph.execution import output_node
from ...network.graph.topology import GATE, IMAGE, JOIN
from ...network.hooks import pick_logits
from ...network.images.images import Images
from ...network.images.load import check_readable
from ...network.network import Network, fingerprint
from ..shapley.explainer import ShapleyExplainer, StrongestEdges, strongest_edges
from ..shapley.sampled import EstimateSettings
from .graphs import ABOUT, PARAMETERS, AttributionGraphs, shard_name
from .layout import LABEL, OUTPUT, PREDICTION
from .node_features import map_features, parameter_features

LARGEST_HALF = 65504.0
"""The largest float16; values in files are clamped to it."""


@dataclass(frozen=True)
class GraphSettings:
    """Settings of attribution graphs.

    ``edges``: incoming edges kept per node. ``background``: calibration images that replace kernels left out of a coalition.
    ``batch_size``: images per pass, and graphs per file. ``permutations``: permutations of the players in shap's estimates of
    values without a closed form; 0 leaves those edges out.

    Raises:
        UsageError: a number is out of range.
    """

    edges: int = 16
    background: int = 32
    batch_size: int = 64
    seed: int = 0
    permutations: int = 0

    def __post_init__(self) -> None:
        if self.permutations < 0:
            raise UsageError(f"permutations of attribution graphs must not be negative (got {self.permutations}).")
        for name in ("edges", "background", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} of attribution graphs must be at least 1 (got {getattr(self, name)}).")


def build_graphs(
    network: Network,
    images: Images,
    background: Images,
    folder: Path,
    settings: GraphSettings | None = None,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> AttributionGraphs:
    """Write an attribution graph for each image into a folder; an interrupted run resumes from the existing files.

    Args:
        background: ``settings.background`` of these images, drawn with the seed, replace kernels left out of a coalition.

    Raises:
        InputError: the network cannot be traced or has no links with a closed form, or the folder holds graphs of another
            network, other images or other settings.
    """
    settings = settings or GraphSettings()
    sample = background.sample(settings.background, settings.seed)
    estimates = (
        EstimateSettings(permutations=settings.permutations, seed=settings.seed) if settings.permutations else None
    )
    explainer = ShapleyExplainer(network, sample, device=device, estimates=estimates)
    if not explainer.targets:
        raise InputError(
            "None of this network's links between kernels has a closed form for its Shapley values, so it has no attribution "
            "graphs. Rank it by gap."
        )
    writer = _Writer(explainer, folder, settings)
    identity = _identity(network, images, sample, settings)
    if (folder / ABOUT).is_file():
        if read_json(folder / ABOUT).get("identity") != identity:
            raise InputError(
                f"{folder} holds attribution graphs of another network, other images or other settings. Use another folder, "
                "or remove it."
            )
    else:
        writer.begin(identity, len(images), max(len(network.class_names), int(images.labels.max()) + 1))
    done = 0
    for number, (batch, labels) in enumerate(_missing(images, settings.batch_size, folder)):
        if batch is not None:
            writer.write(number, batch, labels)
        done += len(labels)
        progress(done, len(images))
    return AttributionGraphs(folder)


def _missing(images: Images, size: int, folder: Path) -> Iterator[tuple[Tensor | None, Tensor]]:
    """The (images, labels) of each batch; without images if the batch's file already exists."""
    for number, start in enumerate(range(0, len(images), size)):
        part = torch.arange(start, min(start + size, len(images)))
        if (folder / shard_name(number)).is_file():
            yield None, images.labels[part]
        else:
            yield next(images.batches(size, part))


class _Writer:
    """Writes the graphs of a batch into one file."""

    def __init__(self, explainer: ShapleyExplainer, folder: Path, settings: GraphSettings) -> None:
        self._explainer, self._folder, self._settings = explainer, folder, settings
        self._sites = {name: site for name, site in explainer.topology.sites.items() if site.kind != IMAGE}

    def begin(self, identity: str, images: int, classes: int) -> None:
        """Write what all graphs have in common; ``ABOUT`` comes last, so that its presence means that the rest is complete."""
        view, topology = self._explainer.view, self._explainer.topology
        parameters = {name: parameter_features(view, site).contiguous() for name, site in self._sites.items()}
        self._folder.mkdir(parents=True, exist_ok=True)
        for earlier in self._folder.glob("graphs-*.safetensors"):
            earlier.unlink()
        _write(self._folder / PARAMETERS, parameters)
        targets = {name: topology.targets[name] for name in self._explainer.targets}
        about = {
            "identity": identity,
            "images": images,
            "classes": classes,
            "nodes": {name: site.channels for name, site in self._sites.items()},
            "kinds": {name: _kind(site) for name, site in self._sites.items()},
            "sources": {name: list(target.sources) for name, target in targets.items()},
            "unlinked": {name: target.mixer for name, target in self._explainer.inexact.items()},
            "explainers": dict(self._explainer.explainers),
            "settings": asdict(self._settings),
        }
        write_json(self._folder / ABOUT, about)

    def write(self, number: int, images: Tensor, labels: Tensor) -> None:
        """Run one forward pass and write its maps, class scores and the edges of every target."""
        view, tensors = self._explainer.view, dict[str, Tensor]()
        readers: dict[fx.Node, list[Callable[[Tensor], None]]] = {}
        for name, site in self._sites.items():
            if site.classes:
                paid = site.reading if site.kind in (JOIN, GATE) else site.node
                readers.setdefault(paid, []).append(partial(_keep_means, tensors, name, site.dim))
            else:
                readers.setdefault(site.reading, []).append(partial(_keep_features, tensors, name, site.dim))
        readers.setdefault(output_node(view), []).append(partial(_keep_scores, tensors))
        observers = {node: partial(_observe_all, own) for node, own in readers.items()}
        parts: dict[str, list[StrongestEdges]] = {}
        for values in self._explainer(images, observers):
            parts.setdefault(values.target, []).append(strongest_edges(values, self._settings.edges))
        for name, edges in parts.items():
            players = torch.cat([part.players for part in edges])
            small = torch.int16 if int(players.max()) < 2**15 else torch.int32
            tensors[f"players/{name}"] = players.to(small)
            tensors[f"weights/{name}"] = _halved(torch.cat([part.weights for part in edges]))
            tensors[f"kept/{name}"] = _halved(torch.cat([part.kept for part in edges]))
            tensors[f"size/{name}"] = torch.cat([part.size for part in edges]).float()
        tensors[LABEL] = labels
        _write(self._folder / shard_name(number), {name: value.cpu().contiguous() for name, value in tensors.items()})


def _keep_features(tensors: dict[str, Tensor], name: str, dim: int, value: Tensor) -> None:
    tensors[f"map/{name}"] = _halved(map_features(value, dim))


def _keep_means(tensors: dict[str, Tensor], name: str, dim: int, value: Tensor) -> None:
    value = value.movedim(dim, 1)
    tensors[f"classes/{name}"] = value.reshape(*value.shape[:2], -1).mean(2).float()


def _keep_scores(tensors: dict[str, Tensor], value: object) -> None:
    scores = pick_logits(value)
    tensors[OUTPUT], tensors[PREDICTION] = scores.float(), scores.argmax(1)


def _observe_all(readers: list[Callable[[Tensor], None]], value: Tensor) -> None:
    for read in readers:
        read(value)


def _halved(values: Tensor) -> Tensor:
    return values.clamp(-LARGEST_HALF, LARGEST_HALF).half()


def _kind(site: Site) -> str:
    if site.classes:
        return "class"
    return "join" if site.kind in (JOIN, GATE) else "kernel"


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with replacing(path) as temporary:
        save_file(dict(tensors), temporary)


def _identity(network: Network, images: Images, background: Images, settings: GraphSettings) -> str:
    """A hash of everything that determines the graphs."""
    made_of = {
        "network": fingerprint(network),
        "images": check_readable(images, "graphs'"),
        "background": check_readable(background, "background"),
        "preprocessing": [asdict(images.preprocessing), asdict(background.preprocessing)],
        "classes": len(network.class_names),
        "settings": asdict(settings),
    }
    return sha256_json(made_of)
