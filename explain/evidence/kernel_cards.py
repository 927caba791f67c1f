"""Gather everything about each kernel of a network: scores, activations by class, patches, neighbours.

Parts that are unavailable for a network (which cannot be traced, for example) are left out, and ``missing`` gives the reason.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...common.errors import InputError
from ...common.progress import Progress, in_parts, silent
from ...network.graph.channel_origins import NONE, Site
from ...network.graph.topology import GATE, IMAGE, JOIN, Topology, find_topology
from ...network.graph.trace import trace
from ..agic.neighbours import Neighbours, find_neighbours
from ..registry import get_ranker
from ..scores import KernelScores, RankingTask
from .activity import SiteActivity, measure_activity
from .patches import Patch, strongest_patches
from .receptive_fields import FieldMaps

BESIDE = ("gap", "taylor", "magnitude", "bn-scale")
"""Cheap rankings, shown for comparison with the one that decided."""
BESIDE_IMAGES, NEIGHBOUR_IMAGES, BACKGROUND_IMAGES = 256, 48, 32
MOST_PATCHED = 1000
"""The default number of kernels with patches cut out of large images, in total; it keeps a page below 20 MB."""


@dataclass(frozen=True)
class SiteEvidence:
    """The evidence on the kernels of one site: a call of a layer, or a sum or product of branches (with an empty ``layer``).

    ``classes``: whether its kernels are the classes. ``fed_by`` gives, for each channel of a join, the (layer, kernel) that
    feeds it, or None. ``patches`` exist for some kernels (for all without a limit).
    """

    name: str
    kind: str
    layer: str
    kernels: int
    classes: bool
    node: str
    activity: SiteActivity
    patches: Mapping[int, tuple[Patch, ...]]
    fed_by: tuple[tuple[str, int] | None, ...] = ()


@dataclass(frozen=True)
class KernelEvidence:
    """Sites in network order; the ranking that was used, its members and those for comparison; neighbours in attribution
    graphs.

    ``patched`` is the number of kernels per site with patches, besides the required ones (None for all). ``missing`` gives the
    reason for each unavailable part.
    """

    sites: tuple[SiteEvidence, ...]
    ranking: KernelScores | None
    members: tuple[KernelScores, ...]
    beside: tuple[KernelScores, ...]
    neighbours: Neighbours | None
    patched: int | None
    missing: Mapping[str, str]


@dataclass(frozen=True)
class GatheringSettings:
    """Which kernels get patches.

    ``patched`` is the number of kernels per site; None for all if images are small enough to be kept whole, otherwise as many
    as give ``MOST_PATCHED`` in total. ``always`` are the kernels, by node, that always get them: those in evidence trees."""

    patched: int | None = None
    whole_images: bool = True
    always: Mapping[str, frozenset[int]] | None = None


def gather_kernel_evidence(
    task: RankingTask, ranking: KernelScores | None, settings: GatheringSettings, progress: Progress = silent
) -> KernelEvidence:
    """Gather the evidence on the task's calibration images, which have labels or the network's predictions as labels."""
    missing: dict[str, str] = {}
    part = in_parts(progress, ("beside", 4), ("activity", 3), ("patches", 4), ("neighbours", 2))
    members = tuple(ranking.members.values()) if ranking is not None else ()
    known = {scores.method for scores in (*members, *([ranking] if ranking else []))}
    beside = _beside(task, [name for name in BESIDE if name not in known], missing, part("beside"))
    sites: tuple[SiteEvidence, ...] = ()
    neighbours, patched = None, settings.patched
    try:
        view = trace(task.network.module, task.network.example())
        topology = find_topology(view, task.network.example())
        inner = [site for site in topology.sites.values() if site.kind != IMAGE]
        if patched is None and not settings.whole_images:
            patched = max(1, MOST_PATCHED // max(1, len(inner)))
        sites = _sites(task, topology, inner, ranking, settings, patched, part)
    except InputError as error:
        missing["kernels"] = str(error)
    else:
        try:
            neighbours = _neighbours(task, part("neighbours"))
        except InputError as error:
            missing["neighbours"] = str(error)
    limited = patched if patched is not None and any(len(site.patches) < site.kernels for site in sites) else None
    return KernelEvidence(sites, ranking, members, beside, neighbours, limited, missing)


def _beside(
    task: RankingTask, names: Sequence[str], missing: dict[str, str], progress: Progress
) -> tuple[KernelScores, ...]:
    sample = task.images.sample(BESIDE_IMAGES, task.seed)
    found = []
    for done, name in enumerate(names):
        try:
            found.append(get_ranker(name).score(RankingTask(task.network, sample, task.seed, task.device)))
        except InputError as error:
            missing[name] = str(error)
        progress(done + 1, len(names))
    return tuple(found)


def _neighbours(task: RankingTask, progress: Progress) -> Neighbours:
    images = task.images.sample(NEIGHBOUR_IMAGES, task.seed)
    background = task.images.sample(BACKGROUND_IMAGES, task.seed + 1)
    return find_neighbours(
        task.network,
        images,
        background,
        batch_size=min(16, task.batch_size),
        device=task.device,
        progress=progress,
    )


def _sites(
    task: RankingTask,
    topology: Topology,
    inner: Sequence[Site],
    ranking: KernelScores | None,
    settings: GatheringSettings,
    patched: int | None,
    part: Callable[[str], Progress],
) -> tuple[SiteEvidence, ...]:
    view, images = topology.view, task.images
    classes = max(len(task.network.class_names), int(images.labels.max()) + 1)
    activity = measure_activity(
        view, inner, images, classes, batch_size=task.batch_size, device=task.device, progress=part("activity")
    )
    view.to("cpu")
    fields = FieldMaps(view, task.network.example())
    always = settings.always or {}
    found = []
    for done, site in enumerate(inner):
        joined = site.kind in (JOIN, GATE)
        layer = "" if joined else str(site.node.target)
        values = ranking.layers.get(layer) if ranking is not None else None
        chosen = _shown(site.channels, values, patched, always.get(site.reading.name, frozenset()))
        found.append(
            SiteEvidence(
                site.name,
                site.kind,
                layer,
                site.channels,
                site.classes,
                site.reading.name,
                activity[site.name],
                strongest_patches(fields, site, activity[site.name], chosen),
                tuple(_fed_by(topology, site.name, channel) for channel in range(site.channels)) if joined else (),
            )
        )
        part("patches")(done + 1, len(inner))
    return tuple(found)


def _shown(kernels: int, scores: Tensor | None, count: int | None, always: frozenset[int]) -> list[int]:
    """The kernels with patches: ``count`` with alternately the highest and the lowest scores, and the required ones."""
    if count is None or count >= kernels:
        return list(range(kernels))
    order = list(range(kernels)) if scores is None else scores.argsort(descending=True, stable=True).tolist()
    in_turn = [kernel for pair in zip(order, reversed(order), strict=True) for kernel in pair]
    return sorted({*list(dict.fromkeys(in_turn))[:count], *always})


def _fed_by(topology: Topology, name: str, channel: int) -> tuple[str, int] | None:
    """The kernel of a layer that feeds a join's channel, by the first branch that leads to one."""
    for operand in topology.targets[name].operands:
        if operand.origin.players is None:
            continue
        player = int(operand.origin.players[channel])
        if player == NONE:
            continue
        for source in operand.origin.sources:
            site = topology.sites[source]
            if player >= site.channels:
                player -= site.channels
                continue
            if site.kind not in (JOIN, GATE, IMAGE):
                return str(site.node.target), player
            further = _fed_by(topology, source, player) if site.kind != IMAGE else None
            if further is not None:
                return further
            break
    return None
