"""The strongest patches of kernels: the regions of images on which they answer most."""

from collections.abc import Collection
from dataclasses import dataclass

from ...network.graph.channel_origins import Site
from ...network.graph.execution import is_image_map, run_graph
from .activity import SiteActivity
from .receptive_fields import FieldMaps
from .regions import Box


@dataclass(frozen=True)
class Patch:
    """A region that a kernel answers to: the image's number, the pixels that the strongest place sees, the activation there."""

    image: int
    box: Box
    value: float


def strongest_patches(
    fields: FieldMaps, site: Site, activity: SiteActivity, kernels: Collection[int]
) -> dict[int, tuple[Patch, ...]]:
    """Of each kernel asked for its strongest patches, by kernel, the strongest first; none where it is never above zero.

    The box is the theoretical receptive field of the strongest place; the whole image for layers whose output has no places.

    Args:
        fields: of the traced network that the site belongs to, on the CPU; one for all sites, as it keeps what it made.
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
    """The boxes of the places that occur, by place."""
    asked = sorted({place for kernel in kernels for place in activity.place[kernel].tolist()})
    view, example = fields.view, fields.example
    whole = Box(0, 0, example.shape[3], example.shape[2])
    if site.dim != 1 or not is_image_map(run_graph(view, example[:1], [site.reading])[site.reading]):
        return dict.fromkeys(asked, whole)
    places = [divmod(place, activity.width) for place in asked]
    found = fields.boxes(site.reading, activity.height, activity.width, places)
    return dict(zip(asked, found, strict=True))
