"""AGIC as a ranking: attribution graphs, an encoder pretrained on them, and scores of kernels aggregated along their edges.

Zheng et al., Neural Networks 179, 2024. The full text is not public: a reconstruction from the abstract; the choices are in
docs/methods/agic.md.
"""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...common.errors import InputError
from ...common.files import replacing
from ...common.progress import in_parts
from ...network.graph.topology import find_topology
from ...network.graph.trace import trace
from ...network.images.images import Images
from ..registry import register
from ..scores import LayerScores, RankingTask
from ..settings import AgicSettings

if TYPE_CHECKING:
    from .graphs import AttributionGraphs


LEAST_A_CLASS = 10


@register(
    "agic",
    summary="AGIC: the kernels needed for the network's decisions, by attribution graphs with Shapley values as edges",
    needs="labels",
    unit="share of keep rates",
    source="Zheng et al., Neural Networks 179, 2024 (reconstruction from the abstract)",
)
def score_agic(task: RankingTask) -> LayerScores:
    """The mean keep mask of each kernel, in (0, 1); per class over each class's graphs.

    ``task.agic`` limits the number of images, of training steps of the encoder and of training steps of the scores.

    Raises:
        InputError: fewer than ``LEAST_A_CLASS`` images of some class, or a network without links in closed form.
    """
    settings = task.agic
    images = _enough(task.images.sample(settings.images, task.seed), task, settings)
    with tempfile.TemporaryDirectory() as temporary:
        layers, per_class, graphs = _scores(task, images, settings, task.scratch or Path(temporary))
    merged, merged_per_class = _by_layer(layers), _by_layer(per_class)
    details = {**asdict(settings), "images": len(images), "seed": task.seed, **_about(graphs, layers)}
    return LayerScores(merged, merged_per_class, details)


def _scores(
    task: RankingTask, images: Images, settings: AgicSettings, folder: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor], "AttributionGraphs"]:
    _check_classes(task, settings)
    from .build import GraphSettings, build_graphs
    from .edge_scoring import EdgeScoringSettings, train_edge_scoring
    from .encoder import EncoderSettings, GraphEncoder, Standardiser, embed, pretrain

    part = in_parts(task.progress, ("graphs", 2), ("encoder", 6), ("embeddings", 1), ("scores", 1))
    graphs = build_graphs(
        task.network,
        images,
        task.images,
        folder / "graphs",
        GraphSettings(settings.edges, settings.background, task.batch_size, task.seed, settings.permutations),
        device=task.device,
        progress=part("graphs"),
    )
    standardiser = Standardiser.fit(graphs)
    encoder = GraphEncoder(
        graphs.layout, standardiser.features, EncoderSettings(steps=settings.encoder_steps, seed=task.seed)
    )
    kept = folder / "encoder.safetensors"
    if kept.is_file():
        encoder.load_state_dict(load_file(kept))
    else:
        pretrain(encoder, standardiser, graphs, device=task.device, progress=part("encoder"))
        with replacing(kept) as whole:
            save_file({name: value.cpu().contiguous() for name, value in encoder.state_dict().items()}, whole)
    embeddings = embed(encoder, standardiser, graphs, device=task.device, progress=part("embeddings"))
    scoring = EdgeScoringSettings(steps=settings.scoring_steps, seed=task.seed)
    layers, per_class = train_edge_scoring(graphs, embeddings, scoring, device=task.device, progress=part("scores"))
    return layers, per_class, graphs


def _about(graphs: "AttributionGraphs", layers: dict[str, Tensor]) -> dict[str, Any]:
    """Details of the scores: sites without edges, sites with estimated ones, and layers without a score, since no edges lead
    on.
    """
    kernels = [name for name, kind in graphs.layout.kinds.items() if kind == "kernel"]
    return {
        "links without a closed form": graphs.unlinked,
        "estimated": {name: how for name, how in graphs.explainers.items() if how != "closed form"},
        "not scored": [name for name in kernels if name not in layers],
    }


def _check_classes(task: RankingTask, settings: AgicSettings) -> None:
    """Check, before any work, that some links lead to the classes."""
    topology = find_topology(trace(task.network.module, task.network.example()), task.network.example())
    heads = [target for target in topology.kernel_targets.values() if target.site.classes]
    if not any(target.exact for target in heads) and not settings.permutations:
        mixer = next((target.mixer for target in heads), "")
        raise InputError(
            "AGIC follows Shapley values up to the classes, but those into this network's classes have no closed "
            f"form{mixer and ': '}"
            f"{mixer}. Set [agic] permutations = 4 in the recipe to estimate them, or rank by gap."
        )


def _enough(images: Images, task: RankingTask, settings: AgicSettings) -> Images:
    counts = torch.bincount(images.labels, minlength=len(task.network.class_names))
    least = int(counts.argmin())
    if int(counts[least]) < LEAST_A_CLASS:
        names = task.network.class_names
        name = repr(names[least]) if least < len(names) else f"number {least}"
        raise InputError(
            f"AGIC needs at least {LEAST_A_CLASS} images of each class; of its {len(images)} calibration images "
            f"{int(counts[least])} are of class {name}. Give more of them (--calibration, and [agic] images = "
            f"{settings.images} in the recipe), or rank by gap, which needs none."
        )
    return images


def _by_layer(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean over the calls of each layer."""
    calls: dict[str, list[Tensor]] = {}
    for name, value in values.items():
        calls.setdefault(name.partition(", call ")[0], []).append(value)
    return {name: torch.stack(parts).mean(0) for name, parts in calls.items()}
