"""The curve of a search, read back from its SVG."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from secateur.export.report.charts.search_curve import HEIGHT, WIDTH, in_points, search_curve

SVG = "{http://www.w3.org/2000/svg}"


def trial(left, points, low, high, limit):
    return {"fraction": left, "left": left, "points": points, "low": low, "high": high, "holds": high <= limit}


def drawn(limit, chosen, *rows):
    search = {"max_drop": limit, "chosen": chosen, "trials": [trial(*row, limit) for row in rows]}
    text = search_curve(search)
    return ElementTree.fromstring(text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def groups(svg):
    return {group.get("class"): group for group in svg.iter(f"{SVG}g")}


def numbers(path):
    return [float(value) for value in re.findall(r"-?[\d.]+", path.get("d"))]


def heights(svg):
    """From points of drop to heights, by two labels of the axis."""
    labels = [
        (float(text.text), float(text.get("y")) - 4.5)
        for text in svg.iter(f"{SVG}text")
        if text.get("text-anchor") == "end"
    ]
    (first, top), (second, bottom) = labels[0], labels[-1]
    return lambda points: top + (points - first) * (bottom - top) / (second - first)


def test_marks_whiskers_and_limit_lie_where_the_axis_says():
    svg = drawn(2.0, 1, (0.5, 0.4, -0.5, 1.2), (0.25, 1.0, 0.1, 1.9), (0.1, 3.0, 2.0, 4.5))
    y, kinds = heights(svg), groups(svg)
    assert set(kinds) == {"held", "shipped", "failed"}
    for kind, points, low, high in (("held", 0.4, -0.5, 1.2), ("failed", 3.0, 2.0, 4.5)):
        circle = kinds[kind].find(f"{SVG}circle")
        assert float(circle.get("cy")) == pytest.approx(y(points), abs=0.2)
        _, start, end = numbers(kinds[kind].find(f"{SVG}path"))
        assert (start, end) == pytest.approx((y(low), y(high)), abs=0.2)
    diamond = numbers(kinds["shipped"].findall(f"{SVG}path")[1])
    assert diamond[1] + 8 == pytest.approx(y(1.0), abs=0.2)
    limit = next(path for path in svg.iter(f"{SVG}path") if path.get("class") == "limit")
    assert numbers(limit)[1] == pytest.approx(y(2.0), abs=0.2)
    places = [numbers(kinds[kind].find(f"{SVG}path"))[0] for kind in ("failed", "shipped", "held")]
    assert places[1] - places[0] == pytest.approx((places[2] - places[1]) * 0.15 / 0.25, abs=0.3)


@pytest.mark.parametrize("limit", [0.001, 0.1, 1.0, 100.0])
@pytest.mark.parametrize(("points", "low", "high"), [(0, 0, 0), (99, 98, 100), (-40, -60, -20), (0.4, 0.0, 5.0)])
def test_nothing_is_drawn_outside(limit, points, low, high):
    svg = drawn(limit, None, (0.04, points, low, high), (0.995, points, low, high))
    whiskers = [path for path in svg.iter(f"{SVG}path") if path.get("class") == "whisker"]
    assert len(whiskers) == 2
    for whisker in whiskers:
        x, start, end = numbers(whisker)
        assert 0 < x < WIDTH
        assert 0 < end <= start < HEIGHT
    for circle in svg.iter(f"{SVG}circle"):
        assert 0 < float(circle.get("cx")) < WIDTH
        assert 0 < float(circle.get("cy")) < HEIGHT


def test_a_drop_beyond_the_edge_is_an_arrow_with_its_value():
    svg = drawn(1.0, 0, (0.5, 0.5, 0.0, 1.0), (0.1, 63.7, 60, 67))
    failed = groups(svg)["failed"]
    assert failed.find(f"{SVG}circle") is None
    assert failed.find(f"{SVG}text").text == "64"


def test_it_tells_the_same_in_words():
    svg = drawn(1.0, 1, (0.5, 0.2, 0.0, 0.8), (0.25, 0.5, 0.1, 1.0), (0.1, 3.0, 2.0, 4.0))
    assert svg.get("role") == "img"
    named = {element.get("id"): element.text for element in svg if element.get("id")}
    assert svg.get("aria-labelledby").split() == list(named)
    assert "3 tries, 2 within the limit of 1 point." in named["search-desc"]
    assert "25.0% of the MACs with a drop of 0.50 points (0.10 to 1.00)" in named["search-desc"]
    nothing = drawn(1.0, None, (0.5, 3.0, 2.0, 4.0))
    assert "Nothing was cut" in nothing.find(f"{SVG}desc").text


def test_points_in_words():
    assert [in_points(value) for value in (1.0, 0.5, 2)] == ["1 point", "0.5 points", "2 points"]
