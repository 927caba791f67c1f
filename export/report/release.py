"""A run against the report of the last release: may the two be compared, and what got worse by more than was allowed.

Accuracy is compared on the same test images, paired where the release's report says which of them it got right. Latency is
compared on the same device, provider and driver only. Two runs are not timed in turns, so where both have the same original
network (its MACs and parameters) the comparison is of speed-ups over it, which cancels what has changed on the machine since.
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
    """Something in which two reports differ so that their ``spoils`` (latency or accuracy) cannot be compared."""

    what: str
    first: str
    second: str
    spoils: str

    def __str__(self) -> str:
        return f"{self.what}: {self.first} against {self.second}"


@dataclass(frozen=True)
class Change:
    """A change in percent from the first run to the second, positive when worse, with an interval.

    ``noise`` is how far, in percent, a file timed against itself strayed from 1 in either run. ``anchored``: measured as the
    change of the speed-up over the same original network, not of the times themselves.
    """

    batch: int
    percent: float
    low: float
    high: float
    noise: float
    anchored: bool


def machine_differences(first: Report, second: Report) -> list[Difference]:
    """What spoils a comparison of latency: provider, and the device it runs on (GPU and driver, or processor and cores).

    Args:
        first: a report, or what of it is known before a run: ``provider`` and ``environment``.
        second: the same of the other.
    """
    found = []
    if first["provider"] != second["provider"]:
        found.append(Difference("provider", first["provider"], second["provider"], "latency"))
    names = ("processor", "cores") if {first["provider"], second["provider"]} == {"cpu"} else ("gpu", "driver")
    for name in names:
        ours, theirs = (side["environment"].get(name) for side in (first, second))
        if ours != theirs:
            found.append(Difference(name, _told(ours), _told(theirs), "latency"))
    return found


def image_differences(first: Report, second: Report) -> list[Difference]:
    """What spoils a comparison of accuracy: other test images, or another thing that predictions are held against.

    Args:
        first: a report, or what of it is known before measuring: ``accuracy_against`` and ``inputs``.
        second: the same of the other.
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
        InputError: another provider, device or driver, and latency is to be compared.
    """
    if not settings.baseline_latency:
        return
    here = {"provider": provider, "environment": describe_environment().to_json()}
    if differ := machine_differences(release, here):
        raise InputError(
            f"{settings.baseline} was measured on another machine than this ({'; '.join(map(str, differ))}), so its latency "
            "cannot be compared. Run where it was measured, give a report of this machine, or leave latency out with "
            "--no-baseline-latency."
        )


def check_images(
    release: Report, settings: ReleaseSettings, test_sha256: str, listing_sha256: str, against: str
) -> None:
    """Refuse, before any work, a release whose accuracy is of other test images.

    Raises:
        InputError: other images, or other labels.
    """
    inputs = {"test_sha256": test_sha256, "data_listing_sha256": listing_sha256}
    if differ := image_differences(release, {"accuracy_against": against, "inputs": inputs}):
        raise InputError(
            f"{settings.baseline} was measured on other images than these ({'; '.join(map(str, differ))}), so its accuracy "
            "cannot be compared. Give the same test images, or a report on these."
        )


def accuracy_change(first: Report, second: Report) -> tuple[Drop, bool]:
    """The drop in points from one pruned file to another on the same images, and whether it is paired.

    Paired: the bootstrap of the images, by which of them each got right. Unpaired, where a report does not say: Newcombe's
    interval of a difference of proportions from Wilson's of each (Newcombe 1998, Statistics in Medicine 17, method 10).
    """
    one, other = first["pruned"], second["pruned"]
    images = second["drop"]["images"]
    points = 100 * (one["accuracy"] - other["accuracy"])
    if "correct" in one and "correct" in other and first["drop"]["images"] == images:
        try:
            right = [unpack_correct(side["correct"], images) for side in (one, other)]
        except ValueError as error:
            raise InputError(
                f"A report's pruned.correct is damaged ({error}). Take the report as it was written."
            ) from error
        interval = paired_drop_interval(right[0], right[1], second["recipe"].get("seed", 0))
        return Drop(points, interval.low, interval.high, images), True
    down = np.hypot(_arm(one, "low"), _arm(other, "high"))
    up = np.hypot(_arm(one, "high"), _arm(other, "low"))
    return Drop(points, points - 100 * float(down), points + 100 * float(up), images), False


def latency_change(first: Report, second: Report, batch: int) -> Change | None:
    """How much slower the second pruned file is at a batch size; None where one of them was not timed at it."""
    key = str(batch)
    if any(key not in side["ratios"]["latency"] for side in (first, second)):
        return None
    ratios = [side["ratios"]["latency"][key] for side in (first, second)]
    strays = [
        max(abs(side["noise_floor"][key][end] - 1) for end in ("ratio", "low", "high")) for side in (first, second)
    ]
    noise = max(strays)
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
    """The gates against the release, and what a report says of it.

    Accuracy passes when the upper end of the drop is at most what is allowed; latency when the upper end of the slow-down is at
    most what is allowed, or at most the noise floor where that is more; bytes and MACs are exact.
    """
    drop, paired = accuracy_change(release, report)
    how = "paired" if paired else "unpaired, as the release does not say which images it got right"
    tight = 300 / drop.images > settings.allow_accuracy_regression
    hint = f"; {drop.images} test images cannot show less than {300 / drop.images:.2f} points" if tight else ""
    gates = [
        _at_most(
            "release accuracy",
            drop.high,
            settings.allow_accuracy_regression,
            f"upper end of the drop from the release, points ({how}), at most{hint}",
        )
    ]
    slower = None
    if settings.baseline_latency:
        slower = latency_change(release, report, report["recipe"]["measurement"]["latency_batch"])
        limit = settings.allow_latency_regression
        meaning = "upper end of the slow-down from the release, percent, at most"
        if slower is None:
            meaning += "; the release was not timed at this batch size"
        elif slower.noise > limit:
            limit, meaning = slower.noise, f"{meaning} the noise floor, which is more than the {limit:g} allowed"
        gates.append(_at_most("release latency", slower.high if slower else None, limit, meaning))
    growth = {
        name: 100 * (report["pruned"][key] / release["pruned"][key] - 1)
        for name, key in (("size", "onnx_bytes"), ("macs", "macs"))
    }
    gates += [
        _at_most(
            "release size", growth["size"], settings.allow_size_regression, "growth of model.onnx, percent, at most"
        ),
        _at_most(
            "release macs", growth["macs"], settings.allow_macs_regression, "growth of the MACs, percent, at most"
        ),
    ]
    said = {
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
    return tuple(gates), said


def _at_most(name: str, value: float | None, limit: float, meaning: str) -> Gate:
    verdict = NOT_MEASURED if value is None else PASS if value <= limit else FAIL
    return Gate(name, value, limit, verdict, meaning)


def _arm(side: Mapping[str, Any], end: str) -> float:
    """How far the accuracy's interval reaches to one end."""
    return abs(float(side["accuracy_interval"][end]) - float(side["accuracy"]))


def _told(value: Any) -> str:
    return "none" if value is None else str(value)
