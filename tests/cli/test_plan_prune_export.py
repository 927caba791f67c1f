"""The single commands, each on the files of the one before."""

import json
from pathlib import Path

from secateur.common.errors import ExitCode
from shell import secateur


def test_the_steps_follow_each_other(tmp_path, model, data):
    out = tmp_path / "out"
    code, _, stderr = secateur("plan", "--out", out)
    assert code == ExitCode.BAD_INPUT
    assert "recipe.toml" in stderr or "explain" in stderr
    explained = secateur("explain", "--model", model, "--data", data, "--calibration", "8", "--out", out)
    assert explained[0] == 0, explained[2]
    assert "scores.safetensors" in explained[1]
    assert "no plan" in (out / "evidence.html").read_text()
    planned = secateur("plan", "--out", out, "--macs", "0.6")
    assert planned[0] == 0, planned[2]
    assert json.loads((out / "plan.json").read_text())["after"]["macs"] > 0
    told = secateur("plan", "--out", out, "--explain", "0")
    assert told[0] == 0, told[2]
    assert told[1].count("stays") + told[1].count("goes") == 8
    assert secateur("plan", "--out", out, "--explain", "nosuch")[0] == ExitCode.BAD_INPUT
    edited = json.loads((out / "plan.json").read_text())
    edited["groups"][0]["removed"] = [1, 2, 6]
    (out / "plan.json").write_text(json.dumps(edited))
    pruned = secateur("prune", "--out", out, "--epochs", "0")
    assert pruned[0] == 0, pruned[2]
    assert json.loads((out / "plan.json").read_text())["cut"]["0"]["out_removed"] == [1, 2, 6]
    exported = secateur("export", "--out", out)
    assert exported[0] == 0, exported[2]
    bench = secateur(
        "bench", out / "baseline.onnx", out / "model.onnx", "--data", data, "--batches", "2", "--provider", "cpu"
    )
    assert bench[0] == 0, bench[2]
    assert "latency, batch 2" in bench[1]
    assert "top-1 accuracy" in bench[1]
    alone = secateur("export", "--model", model, "--out", tmp_path / "alone")
    assert alone[0] == 0, alone[2]


def test_a_budget_that_no_plan_can_reach_is_exit_code_1_at_once_unless_the_best_effort_will_do(tmp_path, model, data):
    out = tmp_path / "out"
    assert secateur("explain", "--model", model, "--data", data, "--rank-by", "magnitude", "--out", out)[0] == 0
    code, stdout, stderr = secateur("plan", "--macs", "0.0001", "--out", out)
    assert code == ExitCode.GATE_FAILED
    assert "macs 0.0001 cannot be reached" in stderr
    assert "Lowest budgets that can be reached" in stdout
    assert "✓ sensitivity" not in stdout
    assert not (out / "plan.json").exists()
    code, stdout, stderr = secateur("plan", "--macs", "0.0001", "--best-effort", "--out", out)
    assert code == 0
    assert "budget missed (best effort)" in stderr
    assert json.loads((out / "plan.json").read_text())["missed"]
    code, stdout, stderr = secateur("prune", "--epochs", "0", "--out", out)
    assert code == 0, "the plan that was accepted is followed"
    assert "Budget missed" in stdout


def test_a_model_of_another_plan_is_not_exported(tmp_path, model, data):
    out = tmp_path / "out"
    for command in (
        ("explain", "--model", model, "--data", data, "--rank-by", "magnitude"),
        ("plan", "--macs", "0.6"),
        ("prune", "--epochs", "0"),
        ("plan", "--macs", "0.8"),
    ):
        assert secateur(*command, "--out", out)[0] == 0
    code, _, stderr = secateur("export", "--out", out)
    assert code == ExitCode.BAD_INPUT
    assert "Prune again" in stderr


def test_another_model_in_the_same_folder_is_not_exported_as_the_pruned_one(tmp_path, model, data):
    out = tmp_path / "out"
    for command in (
        ("explain", "--model", model, "--data", data, "--rank-by", "magnitude"),
        ("plan", "--macs", "0.6", "--allocation", "uniform"),
        ("prune", "--epochs", "0"),
    ):
        assert secateur(*command, "--out", out)[0] == 0
    other = tmp_path / "other.py"
    other.write_text(Path(model.rpartition(":")[0]).read_text())
    assert secateur("explain", "--model", f"{other}:build", "--data", data, "--out", out)[0] == 0
    code, _, stderr = secateur("export", "--out", out)
    assert code == ExitCode.BAD_INPUT
    assert "other.py" in stderr
