"""What each group loses at each width, as measured, and interpolated in between."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...common.errors import InputError
from ...common.files import read_json, write_json

RUINED = 1e6
"""The loss, in nats, of a cut after which the class scores are not finite."""

Curves = Mapping[str, tuple[tuple[int, float], ...]]
"""From a group to its (units kept, loss in nats), ascending by units."""


@dataclass(frozen=True)
class Sensitivity:
    """Measured losses.

    Attributes:
        curves: the loss at each width, for every unlocked group; the last point is the whole group with loss 0.
        fitted_images: the number of images that the readers were reconstructed on.
        judged_images: the number of images that the loss was measured on.
        depth: the number of layers behind a removed branch that were fitted for its loss; 0 in files of earlier versions, which
            fitted only what reads the branch.
        decided_by: for a consensus of rankings, the one whose order of removal each group's curve was measured with.
        by_order: for a consensus, the curves of every ranking, for the groups that it scores. Otherwise both are empty.
    """

    curves: Curves
    fitted_images: int
    judged_images: int
    depth: int = 0
    decided_by: Mapping[str, str] = field(default_factory=dict)
    by_order: Mapping[str, Curves] = field(default_factory=dict)

    def loss(self, group: str) -> Callable[[int], float]:
        """The loss of a group as a function of the units that it keeps.

        Monotone cubic interpolation between measured widths; below the narrowest, inversely proportional to the width. At 0 it
        is the measured loss of the whole branch, which may be less than that of a few units: more layers are fitted for it.
        """
        from scipy.interpolate import PchipInterpolator

        without = dict(self.curves[group]).get(0)
        points = [(kept, value) for kept, value in self.curves[group] if kept]
        for index in range(len(points) - 2, -1, -1):  # a narrower width never loses less than a wider one
            kept, value = points[index]
            points[index] = (kept, max(value, points[index + 1][1]))
        curve = PchipInterpolator([kept for kept, _ in points], [value for _, value in points])
        narrowest, steepest = points[0]

        def at(kept: int) -> float:
            if not kept and without is not None:
                return without
            return float(curve(kept)) if kept >= narrowest else steepest * narrowest / max(kept, 1)

        return at

    def with_branch_losses(self, losses: Mapping[str, float]) -> "Sensitivity":
        """The same with other losses of whole branches, where these were measured.

        Args:
            losses: the new loss at width 0, by the group that ends the branch.
        """
        curves = {
            name: ((0, losses[name]), *curve[1:]) if name in losses and not curve[0][0] else curve
            for name, curve in self.curves.items()
        }
        return replace(self, curves=curves)

    def without_branches(self) -> "Sensitivity":
        """The same without the losses of whole branches, so that a plan keeps them all."""
        return replace(
            self, curves={name: tuple(point for point in own if point[0]) for name, own in self.curves.items()}
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "curves": _curves_to_json(self.curves),
            "fitted_images": self.fitted_images,
            "judged_images": self.judged_images,
            "depth": self.depth,
            **({"decided_by": dict(self.decided_by)} if self.decided_by else {}),
            **(
                {"by_order": {one: _curves_to_json(own) for one, own in self.by_order.items()}} if self.by_order else {}
            ),
        }

    def save(self, path: Path) -> None:
        """Write as JSON."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> "Sensitivity":
        """Read what :meth:`save` wrote.

        Raises:
            InputError: the file is missing or holds no sensitivities.
        """
        values = read_json(path)
        try:
            by_order = {order: _curves_from_json(own) for order, own in values.get("by_order", {}).items()}
            return cls(
                _curves_from_json(values["curves"]),
                values["fitted_images"],
                values["judged_images"],
                values.get("depth", 0),
                values.get("decided_by", {}),
                by_order,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path} does not hold sensitivities of secateur ({error}).") from error


def _curves_to_json(curves: Curves) -> dict[str, list[list[float]]]:
    return {name: [list(point) for point in curve] for name, curve in curves.items()}


def _curves_from_json(values: Mapping[str, Any]) -> Curves:
    return {name: tuple((int(kept), float(loss)) for kept, loss in curve) for name, curve in values.items()}
