"""The charts of latency, read back from their SVG."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from secateur.export.report.charts.throughput import speedup_chart, throughput_chart
from secateur.export.report.page_view import batch_rows


def test_latency_charts_draw_what_the_rows_say(full):
    rows = batch_rows(full)
    svg = ElementTree.fromstring(throughput_chart(rows))
    was, now = svg.findall("g")
    y = [float(mark.find("circle").get("cy")) for series in (was, now) for mark in series.findall("g")]
    assert max(y[:4]) - min(y[:4]) == pytest.approx(0, abs=0.2)  # the same images a second at every batch size
    assert y[4] < y[0]  # pruned is faster, so higher
    svg = ElementTree.fromstring(speedup_chart(rows))
    marks = svg.findall("g")
    assert [mark.find("text").text for mark in marks] == ["2.00"] * 4
    low, high = map(float, re.findall(r" ([\d.]+)V([\d.]+)", marks[0].find("path").get("d"))[0])
    assert float(marks[0].find("circle").get("cy")) == pytest.approx((low + high) / 2, abs=0.2)
