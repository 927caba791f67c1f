"""What the page shows of a report: its layers and its classes as rows."""

import pytest
from scipy import stats

from secateur.export.report.page_view import class_rows, layer_rows


def test_words_say_why_a_layer_is_as_it_is(full):
    layers = [
        {**full["layers"][0], "locked": "its reason"},
        {**full["layers"][0], "after": 0},
        {**full["layers"][0], "after": full["layers"][0]["before"]},
        full["layers"][0],
    ]
    why = [row["why"] for row in layer_rows({**full, "layers": layers})]
    assert why == ["its reason", "removed with its whole branch", "kept whole", "gap"]


def test_classes_come_by_what_moved_most_with_wilsons_interval(full):
    rows = class_rows(full)
    moved = [abs(row["points"]) for row in rows]
    assert moved == sorted(moved, reverse=True)
    for row in rows:
        right = round(row["after"] * 40)
        peer = stats.binomtest(right, 40).proportion_ci(method="wilson")
        assert row["interval"] == pytest.approx((peer.low, peer.high))
