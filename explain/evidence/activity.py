"""Activation statistics of kernels in one pass: by class, how often they are active, and where they are strongest."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, fx

from ...common.errors import InputError
from ...common.progress import Progress, silent
from ...network.graph.channel_origins import Site
from ...network.graph.execution import output_node, run_graph
from ...network.hooks import frozen
from ...network.images.images import Images

STRONGEST = 9


@dataclass(frozen=True)
class SiteActivity:
    """Activations of the C kernels of one site on some images, after their own normalisation and activation.

    ``average`` is the mean over images and positions, ``[C]``; ``per_class`` the same over each class's images,
    ``[classes, C]`` (zero for a class without images); ``active`` the share of positions and images above zero, ``[C]``.
    ``value``, ``[C, k]``, are the largest activations, at most one per image, the largest first; ``image`` and ``place``, int64
    ``[C, k]``, are their images and positions (``row * width + column``; 0 for outputs without positions).
    """

    height: int
    width: int
    average: Tensor
    per_class: Tensor
    active: Tensor
    value: Tensor
    image: Tensor
    place: Tensor


def measure_activity(
    view: fx.GraphModule,
    sites: Sequence[Site],
    images: Images,
    classes: int,
    *,
    strongest: int = STRONGEST,
    batch_size: int = 64,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, SiteActivity]:
    """The activity of every site over all images, by the site's name, in one forward pass that keeps no maps.

    Args:
        view: a traced network, in evaluation mode, to which the sites belong.
        classes: the number of classes; labels count from 0.
        strongest: k, limited to the number of images. Of equal activations, that of the earlier image comes first.

    Raises:
        InputError: an image has no label, or a site does not output one row per image.
    """
    if not len(images) or not 0 <= int(images.labels.min()) <= int(images.labels.max()) < classes:
        raise InputError(
            f"Activity by class needs images with labels from 0 to {classes - 1}. Label them, or use the network's predictions."
        )
    tallies = {site.name: _Tally(site, classes, min(strongest, len(images))) for site in sites}
    readers: dict[fx.Node, list[_Tally]] = {}
    for site in sites:
        readers.setdefault(site.reading, []).append(tallies[site.name])
    done = 0
    view = view.to(device)
    with torch.no_grad(), frozen(view):
        for batch, labels in images.batches(batch_size):
            changes: Mapping[fx.Node, Callable[[Tensor], Tensor]] = {
                node: partial(_tally_all, own, labels.to(device), done) for node, own in readers.items()
            }
            run_graph(view, batch.to(device), [output_node(view)], changes)
            done += len(labels)
            progress(done, len(images))
    counts = torch.bincount(images.labels, minlength=classes)
    return {name: tally.result(counts) for name, tally in tallies.items()}


def _tally_all(tallies: Sequence["_Tally"], labels: Tensor, start: int, value: Tensor) -> Tensor:
    for tally in tallies:
        tally.add(value, labels, start)
    return value


class _Tally:
    """The running sums and largest values of one site."""

    def __init__(self, site: Site, classes: int, strongest: int) -> None:
        self._site, self._classes, self._strongest = site, classes, strongest
        self._places: tuple[int, int] = (1, 1)
        self._sums: Tensor | None = None

    def add(self, value: Tensor, labels: Tensor, start: int) -> None:
        if len(value) != len(labels):
            raise InputError(
                f"{self._site.name} gives {len(value)} rows for {len(labels)} images; expected one row per image."
            )
        value = value.movedim(self._site.dim, 1)
        self._places = (value.shape[2], value.shape[3]) if value.dim() == 4 else (1, max(1, value[0, 0].numel()))
        values = value.reshape(*value.shape[:2], -1)
        if self._sums is None:
            self._sums = values.new_zeros(self._classes, values.shape[1], dtype=torch.float64)
            self._above = values.new_zeros(values.shape[1], dtype=torch.float64)
            self._value = values.new_zeros(values.shape[1], 0)
            self._image = self._place = torch.zeros(values.shape[1], 0, dtype=torch.int64, device=values.device)
        self._sums.index_add_(0, labels, values.mean(2).double())
        self._above += (values > 0).float().mean(2).double().sum(0)
        largest, place = values.max(2)
        image = torch.arange(start, start + len(values), device=values.device).expand(values.shape[1], -1)
        found = [
            torch.cat(parts, 1) for parts in ((self._value, largest.T), (self._image, image), (self._place, place.T))
        ]
        order = found[0].argsort(dim=1, descending=True, stable=True)[:, : self._strongest]
        self._value, self._image, self._place = (part.gather(1, order) for part in found)

    def result(self, counts: Tensor) -> SiteActivity:
        assert self._sums is not None
        sums, total = self._sums.cpu(), int(counts.sum())
        return SiteActivity(
            *self._places,
            (sums.sum(0) / total).float(),
            (sums / counts.clamp(min=1).unsqueeze(1)).float(),
            (self._above.cpu() / total).float(),
            self._value.cpu(),
            self._image.cpu(),
            self._place.cpu(),
        )
