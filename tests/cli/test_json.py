"""`--json`: the result alone on standard output, everything for people on standard error."""

import json

import pytest

from secateur.prune.plan import PruningPlan
from shell import secateur

QUICK = ("--calibration", "8", "--rank-by", "magnitude", "--no-evidence")


@pytest.fixture
def explained(model, data, tmp_path):
    out = tmp_path / "run"
    code, _, stderr = secateur("explain", "--model", model, "--data", data, *QUICK, "--out", out)
    assert code == 0, stderr
    return out


def test_plan(explained):
    code, stdout, stderr = secateur(
        "plan", "--macs", "0.7", "--allocation", "uniform", "--round-to", "1", "--out", explained, "--json"
    )
    assert code == 0, stderr
    assert json.loads(stdout) == PruningPlan.load(explained / "plan.json").to_json()
    assert "plan" in stderr
    reasons = json.loads(secateur("plan", "--explain", "0", "--out", explained, "--json")[1])
    assert [row["kernel"] for row in reasons] == list(range(8))
    assert {row["stays"] for row in reasons} <= {True, False}


def test_bench(explained):
    assert secateur("plan", "--macs", "0.7", "--allocation", "uniform", "--round-to", "1", "--out", explained)[0] == 0
    assert secateur("prune", "--repair", "none", "--epochs", "0", "--out", explained)[0] == 0
    assert secateur("export", "--out", explained)[0] == 0
    files = (explained / "baseline.onnx", explained / "model.onnx")
    code, stdout, stderr = secateur("bench", *files, "--batches", "1", "--json")
    assert code == 0, stderr
    found = json.loads(stdout)
    assert (found["first"]["file"], found["second"]["file"]) == ("baseline.onnx", "model.onnx")
    assert found["speedup"]["1"]["low"] <= found["speedup"]["1"]["ratio"] <= found["speedup"]["1"]["high"]
    assert "batch 1" in stderr


def test_rankers_and_doctor():
    rankers = {row["name"]: row for row in json.loads(secateur("rankers", "--json")[1])}
    assert rankers["gap"]["needs"] == "labels"
    assert all(row["source"] for row in rankers.values())
    findings = {row["name"]: row for row in json.loads(secateur("doctor", "--json")[1])}
    assert findings["provider cpu"]["works"] is True
