"""The strongest patches of kernels: the image regions with the largest activations."""

from collections.abc import Collection
from dataclasses import dataclass

from ...network.graph.channel_origins import Site
from ...network.graph.execution import is_image_map, run_graph
from .activity import SiteActivity
from .receptive_fields import FieldMaps
from .regions import Box


@dataclass(frozen=True)
class Patch:
    """A region that activates a kernel: the image's index, the receptive field of the strongest position, the activation
    there.
    """

    image: int
    box: Box
    value: float


def strongest_patches(
    fields: FieldMaps, site: Site, activity: SiteActivity, kernels: Collection[int]
) -> dict[int, tuple[Patch, ...]]:
    """The strongest patches of each requested kernel, the strongest first; none for a kernel that is never above zero.

    The box is the theoretical receptive field of the strongest position; the whole image for layers without positions.

    Args:
        fields: of the site's traced network, on the CPU; pass the same object for all sites, since it caches its maps.
    """
    boxes = _boxes(fields, site, activity, kernels)
    return {
        kernel: tuple(
            Patch(image, boxes[place], value)
            for image, place, value in zip(
                activity.image[kernel].tolist(),
                activity.place[kernel].tolist(),
                activity.value[kernel].tolist(),
                strict=True,
            )
            if value > 0
        )
        for kernel in kernels
    }


def _boxes(fields: FieldMaps, site: Site, activity: SiteActivity, kernels: Collection[int]) -> dict[int, Box]:
    """The boxes of the given positions, by position."""
    asked = sorted({place for kernel in kernels for place in activity.place[kernel].tolist()})
    view, example = fields.view, fields.example
    whole = Box(0, 0, example.shape[3], example.shape[2])
    if site.dim != 1 or not is_image_map(run_graph(view, example[:1], [site.reading])[site.reading]):
        return dict.fromkeys(asked, whole)
    places = [divmod(place, activity.width) for place in asked]
    found = fields.boxes(site.reading, activity.height, activity.width, places)
    return dict(zip(asked, found, strict=True))
