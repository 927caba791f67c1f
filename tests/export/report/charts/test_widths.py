"""The profile of widths, read back from its SVG."""

import xml.etree.ElementTree as ElementTree

from secateur.export.report.charts.widths import width_profile


def test_width_profile_is_in_proportion():
    layers = [{"name": "a", "before": 10, "after": 4}, {"name": "b", "before": 20, "after": 0}]
    svg = ElementTree.fromstring(width_profile(layers))
    tall = [[float(rect.get("height")) for rect in group.findall("rect")] for group in svg.findall("g")]
    assert tall == [[50, 20], [100, 0]]
