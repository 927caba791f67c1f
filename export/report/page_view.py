"""Rows and charts of the report page, derived from a report: classes, layers, batch sizes."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from ...network.intervals import wilson_interval
from ..measure.accuracy import MEASURES
from .charts.classes import CLASS_ROWS, class_chart
from .charts.throughput import speedup_chart, throughput_chart
from .charts.widths import width_profile
from .gates import held
from .tables import device_ratio

Row = dict[str, Any]
Report = Mapping[str, Any]
_HEADING = re.compile(r'<h2 id="([^"]+)"(?: data-nav="([^"]+)")?>(.*?)</h2>', re.DOTALL)


def page_view(report: Report, command: str) -> dict[str, Any]:
    """Rows and charts for the templates, and the ``command`` that repeats the run.

    The charts are safe markup, since they escape the names in them.
    """
    from markupsafe import Markup

    classes, layers, batches = class_rows(report), layer_rows(report), batch_rows(report)
    return {
        "classes": classes,
        "moved": [row for row in classes if row["points"]],
        "classes_drawn": min(CLASS_ROWS, len(classes)),
        "class_chart": Markup(class_chart(classes, MEASURES[report["accuracy_against"]])) if classes else "",
        "layers": layers,
        "widest": max((layer["before"] for layer in layers), default=0),
        "profile": Markup(width_profile(layers)) if layers else "",
        "batches": batches,
        "throughput": Markup(throughput_chart(batches)) if batches else "",
        "speedup": Markup(speedup_chart(batches)) if batches else "",
        "command": command,
        "not_passed": [gate for gate in report["gates"] if not held(gate["verdict"])],
    }


def class_rows(report: Report) -> list[Row]:
    """Every class with test images: accuracy before and after, Wilson's interval of the latter, and the change in points.

    The largest changes come first; of equal ones, losses come first.
    """
    before, after = report["baseline"]["accuracy_per_class"], report["pruned"]["accuracy_per_class"]
    images = report["inputs"].get("test_per_class", {})
    rows = []
    for name in before:
        if before[name] is None or after.get(name) is None:
            continue
        interval = None
        if total := images.get(name):
            found = wilson_interval(round(after[name] * total), total)
            interval = (found.low, found.high)
        rows.append(
            {
                "name": name,
                "before": before[name],
                "after": after[name],
                "interval": interval,
                "images": images.get(name),
                "points": 100 * (after[name] - before[name]),
            }
        )
    return sorted(rows, key=lambda row: (-round(abs(row["points"]), 9), row["points"]))


def layer_rows(report: Report) -> list[Row]:
    """The report's layers, each with ``href`` to its evidence (None without an evidence page) and ``why`` in words."""
    page = report.get("evidence")
    rows = []
    for layer in report["layers"]:
        if layer["locked"]:
            why = layer["locked"]
        elif layer["after"] == 0:
            why = "removed with its whole branch"
        elif layer["after"] == layer["before"]:
            why = "kept whole"
        else:
            why = layer["decided_by"]
        rows.append({**layer, "why": why, "href": f"{page}#layer-{quote(layer['name'], safe='')}" if page else None})
    return rows


def batch_rows(report: Report) -> list[Row]:
    """Latency, images per second and speedup of both files at each batch size, in ascending order."""
    rows = []
    for batch in sorted(report["ratios"]["latency"], key=int):
        sides = {name: report[name]["latency"][batch] for name in ("baseline", "pruned")}
        rows.append(
            {
                "batch": int(batch),
                **sides,
                "rates": {name: 1e3 * int(batch) / side["median_ms"] for name, side in sides.items()},
                "ratio": report["ratios"]["latency"][batch],
                "floor": report["noise_floor"][batch],
                "device": device_ratio(report, batch),
            }
        )
    return rows


def headings(page: str) -> list[tuple[str, str]]:
    """The (id, text) of every section heading of a page, for its navigation; ``data-nav`` on a heading gives a shorter text."""
    return [(name, short or words) for name, short, words in _HEADING.findall(page)]
