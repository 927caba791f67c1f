"""The Pareto front against its definition, and the plots against their axes."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from secateur.export.measure.pareto import on_front
from secateur.export.report.charts.front import COSTS, front_plot

SVG = "{http://www.w3.org/2000/svg}"


def sweep(costs, gains):
    """Another way: by ascending cost, what gains more than all that is cheaper, and as much as any of its own cost."""
    result = []
    for cost, gain in zip(costs, gains, strict=True):
        cheaper = [more for other, more in zip(costs, gains, strict=True) if other < cost]
        equal = [more for other, more in zip(costs, gains, strict=True) if other == cost]
        result.append(gain == max(equal) and (not cheaper or gain > max(cheaper)))
    return result


@pytest.mark.parametrize("seed", range(30))
def test_front_is_what_nothing_beats(seed):
    generator = np.random.default_rng(seed)
    costs, gains = generator.integers(1, 6, 12).tolist(), generator.integers(1, 6, 12).tolist()
    assert on_front(costs, gains) == sweep(costs, gains)


def test_what_was_not_measured_is_neither_on_nor_off():
    assert on_front([None, 2.0, 1.0], [9.0, 5.0, 5.0]) == [None, False, True]


def candidate(name, accuracy, latency, size, macs, front):
    return {
        "name": name, "precision": "fp32", "file": None, "accuracy": accuracy, "latency_ms": latency, "onnx_bytes": size,
        "macs": macs, "on_front": dict.fromkeys(("latency", "size", "macs"), front),
    }  # fmt: skip


@pytest.mark.parametrize("cost", COSTS)
def test_marks_lie_inside_and_in_order(cost):
    rows = [
        candidate("<a>", 0.9, 2.0, 4000, 40_000_000, True),
        candidate("b", 0.8, 1.0, 1000, 10_000_000, True),
        candidate("c", 0.7, None, 2000, 20_000_000, False),
    ]
    text = front_plot(rows, cost).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    svg = ElementTree.fromstring(text)
    circles = [(float(one.get("cx")), float(one.get("cy"))) for one in svg.iter(f"{SVG}circle")]
    assert len(circles) == (2 if cost == "latency" else 3)
    width, height = map(float, svg.get("viewBox").split()[2:])
    assert all(0 < x < width and 0 < y < height for x, y in circles)
    assert circles[0][0] > circles[1][0]  # dearer is further right
    assert circles[0][1] < circles[1][1]  # more accurate is higher
    kinds = [group.get("class") for group in svg.iter(f"{SVG}g")]
    assert kinds[:2] == ["held", "held"]
    assert "<a>" in next(svg.iter(f"{SVG}desc")).text


@pytest.mark.parametrize(("low", "high"), [(1, 1), (0.1, 0.11), (1, 1e9), (999, 1001)])
def test_axes_of_any_range_have_marks(low, high):
    rows = [candidate("a", 0.5, low, 1000, 10, True), candidate("b", 0.5, high, 1000, 10, True)]
    assert front_plot(rows, "latency").count('text-anchor="middle"') >= 3  # a value, the label, the marks' numbers
