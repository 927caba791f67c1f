"""The chart of classes, read back from its SVG."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from secateur.export.report.charts.classes import class_chart


def test_class_chart_draws_what_the_rows_say():
    rows = [
        {"name": "<a>", "before": 1.0, "after": 0.5, "interval": (0.4, 0.6), "points": -50},
        {"name": "b", "before": 0.8, "after": 0.9, "interval": None, "points": 10},
    ]
    svg = ElementTree.fromstring(class_chart(rows, "accuracy"))
    worse, better = svg.findall("g")
    assert (worse.get("class"), better.get("class")) == ("worse", "better")
    was, now = (float(circle.get("cx")) for circle in worse.findall("circle"))
    low, high = map(float, re.findall(r"M([\d.]+) [\d.]+H([\d.]+)", worse.find("path").get("d"))[0])
    assert (now - low) / (was - now) == pytest.approx(0.2, abs=0.01)  # 0.1 of 0.5
    assert high - now == pytest.approx(now - low, abs=0.2)
    assert svg.find("title").text == "accuracy per class before and after"
    assert "50.00%" in svg.find("desc").text
