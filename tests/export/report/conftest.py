"""A report with every section, and more in each than a page has room for."""

import copy

import pytest


@pytest.fixture(scope="module")
def full(report):
    """Three hundred layers, sixty classes, four batch sizes, a search, evidence, and names that are hard to set."""
    made = copy.deepcopy(dict(report))
    counts = {f"class {index}": 40 for index in range(59)} | {"<i>&".ljust(70, "m"): 40}
    for side, lost in (("baseline", 0), ("pruned", 6)):
        shares = {name: (38 - (index % 7) * bool(lost) * (index % 5 == 0)) / 40 for index, name in enumerate(counts)}
        latency = {
            str(batch): {
                "median_ms": 0.3 * batch / (1 + bool(lost)),
                "p95_ms": 0.4 * batch,
                "samples": 50,
                "low_ms": 0.28 * batch / (1 + bool(lost)),
                "high_ms": 0.33 * batch / (1 + bool(lost)),
            }
            for batch in (1, 8, 32, 128)
        }
        made[side] |= {"accuracy_per_class": shares, "latency": latency}
    ratio = {"ratio": 2.0, "low": 1.8, "high": 2.2}
    floor = {"ratio": 1.01, "low": 0.98, "high": 1.04}
    made["ratios"]["latency"] = {str(batch): ratio for batch in (1, 8, 32, 128)}
    made["noise_floor"] = {str(batch): floor for batch in (1, 8, 32, 128)}
    made["inputs"]["test_per_class"] = counts
    made["evidence"] = "evidence.html"
    made["layers"] = [
        {
            "name": f"features.{index}/a b#c",
            "group": "g",
            "before": 16 + index,
            "after": 8 + index // 2,
            "aligned": True,
            "decided_by": "gap",
            "locked": "",
            "highest_gone": 0.5,
            "lowest_kept": 0.6,
        }
        for index in range(300)
    ]
    made["search"] = {
        "max_drop": 1.0,
        "chosen": 0,
        "trials": [{"fraction": 0.5, "left": 0.49, "points": 0.2, "low": -0.3, "high": 0.8, "holds": True}],
    }
    one = {"target": 0.7, "planned": 0.69, "measured": 0.71, "low": 0.7, "high": 0.73, "narrowest": False}
    made["latency_budget"] = {
        "asked": 0.7,
        "planned": 0.69,
        "measured": 0.71,
        "low": 0.7,
        "high": 0.73,
        "batch": 1,
        "provider": "cpu",
        "chosen": 0,
        "tries": [one],
        "table": {"sha256": "0" * 64, "layers": 9, "measured_points": 40, "offset_ms": 0.02},
    }
    made["inputs"]["images"] |= {"validation": 300}
    return made
