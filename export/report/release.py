"""Compare a run with the report of the last release: whether the two are comparable, and which regressions exceed the limits.

Accuracy is compared on the same test images, paired if the release's report says which of them it classified correctly.
Latency is compared only on the same device, provider and driver. The two runs are not timed alternately, so if both have the
same original network (its MACs and parameters), speedups over it are compared, which cancels changes of the machine.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...common.environment import describe_environment
from ...common.errors import InputError
from ...network.intervals import paired_drop_interval
from ..measure.accuracy import Drop, unpack_correct
from ..settings import ReleaseSettings
from .gates import FAIL, NOT_MEASURED, PASS, Gate

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """A difference between two reports that makes their ``spoils`` (latency or accuracy) incomparable."""

    what: str
    first: str
    second: str
    spoils: str

    def __str__(self) -> str:
        return f"{self.what}: {self.first} against {self.second}"


@dataclass(frozen=True)
class Change:
    """A change in percent from the first run to the second, positive when worse, with an interval.

    ``noise`` is the largest deviation, in percent, of a file timed against itself in either run. ``anchored``: measured as the
    change of the speedup over the same original network, not of the times themselves.
    """

    batch: int
    percent: float
    low: float
    high: float
    noise: float
    anchored: bool


def machine_differences(first: Report, second: Report) -> list[Difference]:
    """Differences that make latency incomparable: provider, and its device (GPU and driver, or processor and cores).

    Args:
        first: a report, or the part known before a run: ``provider`` and ``environment``.
        second: the same for the other run.
    """
    found = []
    if first["provider"] != second["provider"]:
        found.append(Difference("provider", first["provider"], second["provider"], "latency"))
    names = ("processor", "cores") if {first["provider"], second["provider"]} == {"cpu"} else ("gpu", "driver")
    for name in names:
        ours, theirs = (side["environment"].get(name) for side in (first, second))
        if ours != theirs:
            found.append(Difference(name, _text(ours), _text(theirs), "latency"))
    return found


def image_differences(first: Report, second: Report) -> list[Difference]:
    """Differences that make accuracy incomparable: other test images, or another reference for predictions.

    Args:
        first: a report, or the part known before measuring: ``accuracy_against`` and ``inputs``.
        second: the same for the other run.
    """
    found = []
    key = "test_sha256" if all("test_sha256" in side["inputs"] for side in (first, second)) else "data_listing_sha256"
    ours, theirs = first["inputs"][key], second["inputs"][key]
    if ours != theirs:
        found.append(Difference("test images", f"{ours[:12]}…", f"{theirs[:12]}…", "accuracy"))
    if first["accuracy_against"] != second["accuracy_against"]:
        sides = (first["accuracy_against"], second["accuracy_against"])
        found.append(Difference("accuracy is against", *sides, "accuracy"))
    return found


def check_machine(release: Report, settings: ReleaseSettings, provider: str) -> None:
    """Refuse, before any work, a release that was measured elsewhere.

    Raises:
        InputError: provider, device or driver differ, and latency is to be compared.
    """
    if not settings.baseline_latency:
        return
    here = {"provider": provider, "environment": describe_environment().to_json()}
    if differ := machine_differences(release, here):
        raise InputError(
            f"{settings.baseline} was measured on another machine ({'; '.join(map(str, differ))}), so its latency "
            "cannot be compared. Run on that machine, give a report from this machine, or skip latency with "
            "--no-baseline-latency."
        )


def check_images(
    release: Report, settings: ReleaseSettings, test_sha256: str, listing_sha256: str, against: str
) -> None:
    """Refuse, before any work, a release that was measured on other test images.

    Raises:
        InputError: images or labels differ.
    """
    inputs = {"test_sha256": test_sha256, "data_listing_sha256": listing_sha256}
    if differ := image_differences(release, {"accuracy_against": against, "inputs": inputs}):
        raise InputError(
            f"{settings.baseline} was measured on other test images ({'; '.join(map(str, differ))}), so its accuracy "
            "cannot be compared. Use the same test images, or a report on these."
        )


def accuracy_change(first: Report, second: Report) -> tuple[Drop, bool]:
    """The drop in points from one pruned file to another on the same images, and whether it is paired.

    Paired: a bootstrap over the images, by which of them each file classified correctly. Unpaired, if a report does not record
    that: Newcombe's interval of a difference of proportions, from the Wilson interval of each (Newcombe 1998, Statistics in
    Medicine 17, method 10).
    """
    one, other = first["pruned"], second["pruned"]
    images = second["drop"]["images"]
    points = 100 * (one["accuracy"] - other["accuracy"])
    if "correct" in one and "correct" in other and first["drop"]["images"] == images:
        try:
            right = [unpack_correct(side["correct"], images) for side in (one, other)]
        except ValueError as error:
            raise InputError(f"A report's pruned.correct is damaged ({error}). Use the unmodified report.") from error
        interval = paired_drop_interval(right[0], right[1], second["recipe"].get("seed", 0))
        return Drop(points, interval.low, interval.high, images), True
    down = np.hypot(_arm(one, "low"), _arm(other, "high"))
    up = np.hypot(_arm(one, "high"), _arm(other, "low"))
    return Drop(points, points - 100 * float(down), points + 100 * float(up), images), False


def latency_change(first: Report, second: Report, batch: int) -> Change | None:
    """How much slower the second pruned file is at a batch size; None if one of them was not timed at it."""
    key = str(batch)
    if any(key not in side["ratios"]["latency"] for side in (first, second)):
        return None
    ratios = [side["ratios"]["latency"][key] for side in (first, second)]
    deviations = [
        max(abs(side["noise_floor"][key][end] - 1) for end in ("ratio", "low", "high")) for side in (first, second)
    ]
    noise = max(deviations)
    if anchored := all(first["baseline"][name] == second["baseline"][name] for name in ("macs", "parameters")):
        slower = ratios[0]["ratio"] / ratios[1]["ratio"]
        low, high = ratios[0]["low"] / ratios[1]["high"], ratios[0]["high"] / ratios[1]["low"]
    else:
        slower = second["pruned"]["latency"][key]["median_ms"] / first["pruned"]["latency"][key]["median_ms"]
        low, high = slower / (1 + noise), slower * (1 + noise)
    return Change(batch, 100 * (slower - 1), 100 * (low - 1), 100 * (high - 1), 100 * noise, anchored)


def judge_release(
    settings: ReleaseSettings, release: Report, report: Report
) -> tuple[tuple[Gate, ...], dict[str, Any]]:
    """The gates against the release, and the ``release`` entry of a report.

    Accuracy passes if the upper bound of the drop is within its limit; latency if the upper bound of the slowdown is within its
    limit, or within the noise floor if that is larger. Size and MACs are compared exactly.
    """
    drop, paired = accuracy_change(release, report)
    how = "paired" if paired else "unpaired, since the release does not say which images it classified correctly"
    tight = 300 / drop.images > settings.allow_accuracy_regression
    hint = f"; {drop.images} test images cannot resolve less than {300 / drop.images:.2f} points" if tight else ""
    gates = [
        _at_most(
            "release accuracy",
            drop.high,
            settings.allow_accuracy_regression,
            f"upper bound of the drop from the release, points ({how}); must not exceed the limit{hint}",
        )
    ]
    slower = None
    if settings.baseline_latency:
        slower = latency_change(release, report, report["recipe"]["measurement"]["latency_batch"])
        limit = settings.allow_latency_regression
        meaning = "upper bound of the slowdown from the release, percent; must not exceed the limit"
        if slower is None:
            meaning += "; the release was not timed at this batch size"
        elif slower.noise > limit:
            limit, meaning = slower.noise, f"{meaning}, here the noise floor, which is above the {limit:g} allowed"
        gates.append(_at_most("release latency", slower.high if slower else None, limit, meaning))
    growth = {
        name: 100 * (report["pruned"][key] / release["pruned"][key] - 1)
        for name, key in (("size", "onnx_bytes"), ("macs", "macs"))
    }
    for name, what in (("size", "model.onnx"), ("macs", "the MACs")):
        limit = getattr(settings, f"allow_{name}_regression")
        gates.append(
            _at_most(f"release {name}", growth[name], limit, f"growth of {what}, percent; must not exceed the limit")
        )
    entry = {
        "report": Path(settings.baseline or "").name,
        "secateur_version": release["secateur_version"],
        "accuracy": release["pruned"]["accuracy"],
        "onnx_bytes": release["pruned"]["onnx_bytes"],
        "macs": release["pruned"]["macs"],
        "onnx_sha256": release["pruned"]["onnx_sha256"],
        "drop": {**asdict(drop), "paired": paired},
        "latency": asdict(slower) if slower else None,
        "size_percent": growth["size"],
        "macs_percent": growth["macs"],
    }
    return tuple(gates), entry


def _at_most(name: str, value: float | None, limit: float, meaning: str) -> Gate:
    verdict = NOT_MEASURED if value is None else PASS if value <= limit else FAIL
    return Gate(name, value, limit, verdict, meaning)


def _arm(side: Mapping[str, Any], end: str) -> float:
    """The distance from the accuracy to one end of its interval."""
    return abs(float(side["accuracy_interval"][end]) - float(side["accuracy"]))


def _text(value: Any) -> str:
    return "none" if value is None else str(value)
