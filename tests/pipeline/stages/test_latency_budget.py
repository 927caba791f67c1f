"""A latency budget from end to end on the digits, with a machine that reckons and with the real one."""

import json
import math
from dataclasses import replace

import jsonschema
import onnx
import pytest

from secateur import prune_and_export
from secateur.common.errors import ExitCode, InputError, UsageError
from secateur.common.files import sha256_file
from secateur.export.measure.latency import Comparison, Latency
from secateur.export.measure.paired_ratio import Ratio
from secateur.export.report.content import schema
from secateur.export.report.rendering import to_html, to_markdown
from secateur.pipeline.recipe.recipe import Recipe
from secateur.prune.settings import BudgetSettings
from secateur.prune.widths.ranking_choice import best_plan
from shell import secateur


def recipe(**options):
    quick = Recipe().override(epochs=0, repair="bn", calibration=100, rank_by="magnitude", **options)
    return replace(quick, measurement=replace(quick.measurement, batches=(1,)))


def reckoned_ms(model):
    """Milliseconds of all convolutions and linear layers, by blocks of eight channels read and made."""
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    total = 0.0
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            out, into, *kernel = next(shapes[name] for name in node.input[1:2])
            total += 1e-3 * math.ceil(out / 8) * math.ceil(into / 8) * math.prod(kernel)
    return total


FIXED = 0.3
"""The share of the baseline that no table sees."""


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine on which time is what :func:`reckoned_ms` says, and a share that the table knows nothing of: the copies to the
    device, without which the time on the device is.
    """

    class Reckoning:
        def __init__(self, provider, threads):
            self.provider, self.threads = provider, threads

        def times(self, graphs):
            return [reckoned_ms(onnx.load_model_from_string(graph)) for graph in graphs]

        def whole_to_parts(self, whole, batch, parts, order):
            return 1.0

    def compare(baseline, others, shape, batch, settings, progress):
        return [compare_one(baseline, other, batch) for other in others]

    def compare_one(baseline, pruned, batch):
        first, second = (reckoned_ms(onnx.load(path)) for path in (baseline, pruned))
        fixed = first * FIXED / (1 - FIXED)
        ratio = (first + fixed) / (second + fixed)
        latencies = (Latency(ms + fixed, ms + fixed, 30, ms + fixed, ms + fixed) for ms in (first, second))
        ratios = (Ratio(one, 0.99 * one, 1.01 * one) for one in (ratio, first / second))
        return Comparison(batch, *latencies, next(ratios), Ratio(1.0, 0.99, 1.01), next(ratios))

    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("secateur.export.measure.latency_table.SessionStopwatch", Reckoning)
    monkeypatch.setattr("secateur.pipeline.stages.latency_budget.compare_latencies", compare)
    monkeypatch.setattr("secateur.pipeline.stages.shipped_files.compare_latencies", compare)


def test_planned_measured_and_planned_again_until_it_fits(machine, tmp_path, recorder):
    settings = recipe(latency=0.7, allocation="uniform")
    run = prune_and_export(settings, tmp_path / "out")
    report = json.loads((run.folder / "report.json").read_text())
    jsonschema.validate(report, schema())
    found = report["latency_budget"]
    tries = found["tries"]
    assert run.exit_code == ExitCode.OK
    assert tries[0]["target"] == 0.7
    assert tries[0]["measured"] > 0.7, "the share that the table does not see"
    assert tries[0]["measured"] == pytest.approx(FIXED + (1 - FIXED) * tries[0]["planned"], abs=0.01)
    assert 0.63 <= found["measured"] <= 0.7
    assert found["measured"] == pytest.approx(tries[found["chosen"]]["measured"])
    (gate,) = report["gates"]
    assert (gate["name"], gate["verdict"], gate["limit"]) == ("budget", "pass", 0.7)
    both = (reckoned_ms(onnx.load(run.folder / name)) for name in ("model.onnx", "baseline.onnx"))
    left = next(both) / next(both)
    assert found["measured"] == pytest.approx(FIXED + (1 - FIXED) * left)
    plan = json.loads((run.folder / "plan.json").read_text())
    assert (plan["resource"], plan["latency_table"]) == ("latency", found["table"]["sha256"])
    assert plan["fraction"] == tries[found["chosen"]]["target"] < 0.7
    text = (run.folder / "report.md").read_text()
    assert f"cut to be {1 / found['measured']:.2f} times as fast at batch 1" in text
    assert "1.43 times as fast requested (0.700 of the latency)" in text
    older = {name: value for name, value in report.items() if name != "latency_budget"}
    older["recipe"] = Recipe().to_dict()
    assert "Budget of time" not in to_markdown(older) + to_html(older)

    names = ("plan.json", "model.onnx", "model.safetensors", "recipe.toml")
    before = {name: sha256_file(run.folder / name) for name in names}
    observer = recorder()
    prune_and_export(settings, run.folder, resume=True, observer=observer)
    assert {"table", "time 0.700", "export", "latency"} <= set(observer.skips)
    assert {name: sha256_file(run.folder / name) for name in names} == before


def test_a_budget_on_the_device_leaves_out_the_copies(machine, tmp_path):
    run = prune_and_export(recipe(latency=0.7, allocation="uniform", page=False, latency_of="device"), tmp_path / "out")
    jsonschema.validate(json.loads((run.folder / "report.json").read_text()), schema())
    found = run.report["latency_budget"]
    assert found["latency_of"] == "device"
    assert found["tries"][0]["measured"] == pytest.approx(found["tries"][0]["planned"], abs=0.01), (
        "the table is all there is"
    )
    both = [reckoned_ms(onnx.load(run.folder / name)) for name in ("model.onnx", "baseline.onnx")]
    assert found["measured"] == pytest.approx(both[0] / both[1])
    (gate,) = run.report["gates"]
    assert (gate["verdict"], gate["value"]) == ("pass", pytest.approx(both[0] / both[1]))
    assert gate["meaning"].startswith("time on the device of model.onnx")
    assert "at batch 1, on the device: 1.43 times as fast requested" in (run.folder / "report.md").read_text()


@pytest.mark.long
def test_a_floor_ends_the_run_with_the_floor_named(machine, tmp_path):
    run = prune_and_export(recipe(latency=0.2, allocation="uniform"), tmp_path / "out")
    assert run.exit_code == ExitCode.GATE_FAILED
    (gate,) = run.report["gates"]
    assert gate["verdict"] == "fail"
    locked = run.report["locked"]
    assert locked["lowest"]["latency"] < 0.2, "the table does not know of the floor, so only measuring tells"
    assert 0 < locked["shares"]["latency"] < 1
    assert "by the latency table" in (run.folder / "report.html").read_text()
    assert "which is the floor" in gate["meaning"]
    assert gate["value"] > 0.2


def test_plan_alone_goes_by_the_table(machine, tmp_path):
    out = tmp_path / "out"
    assert secateur("explain", "--rank-by", "magnitude", "--calibration", "100", "--out", out)[0] == 0
    code, stdout, stderr = secateur("plan", "--latency", "0.7", "--allocation", "uniform", "--out", out)
    assert code == 0, stderr
    assert "only `prune-and-export` also times the pruned network" in " ".join(stdout.split())
    plan = json.loads((out / "plan.json").read_text())
    assert plan["resource"] == "latency"
    code, stdout, stderr = secateur("plan", "--latency", "0.001", "--out", out)
    assert code == ExitCode.GATE_FAILED, "by the table nothing comes near"
    assert "of the estimated latency is left by the latency table" in " ".join(stderr.split())
    assert plan["latency_table"]
    assert "latency = 0.7" in (out / "recipe.toml").read_text()
    code, _, stderr = secateur("prune", "--repair", "none", "--epochs", "0", "--out", out)
    assert code == 0, stderr


@pytest.mark.long
def test_of_a_consensus_the_order_of_the_first_try_serves_the_others(machine, tmp_path, monkeypatch):
    asked = []

    def watched(plans, *rest):
        asked.append(list(plans))
        return best_plan(plans, *rest)

    monkeypatch.setattr("secateur.pipeline.stages.planning.best_plan", watched)
    settings = recipe(latency=0.7, allocation="uniform", page=False).override(rank_by="gap,magnitude")
    run = prune_and_export(settings, tmp_path / "out")
    plan = json.loads((run.folder / "plan.json").read_text())
    tries = run.report["latency_budget"]["tries"]
    assert len(tries) > 1
    assert asked == [["consensus", "gap", "magnitude"], *([plan["order"]] for _ in tries)]
    assert set(plan["tried"]) == {"consensus", "gap", "magnitude"}


def test_what_cannot_be_asked(tmp_path):
    with pytest.raises(UsageError, match="speed-up is planned, measured and planned again"):
        BudgetSettings(latency=0.7, rounds=2)
    with pytest.raises(UsageError, match="speedup must be above 1, times as fast as the baseline"):
        BudgetSettings(speedup=0.8)
    assert BudgetSettings(speedup=1.25).fraction == 0.8
    assert BudgetSettings(speedup=1.25).of(0.7) == BudgetSettings(latency=0.7)
    with pytest.raises(UsageError, match="latency must be between 0 and 1"):
        BudgetSettings(latency=1.2)
    with pytest.raises(UsageError, match="latency and macs are 2 budgets"):
        BudgetSettings(macs=0.5, latency=0.7)
    (tmp_path / "recipe.toml").write_text("[budget]\nlatency = 0.7\nrounds = 3\n")
    with pytest.raises(InputError, match="rounds must be 1"):
        Recipe.read(tmp_path / "recipe.toml")
    assert Recipe().override(macs=0.5).override(latency=0.7).budget == BudgetSettings(latency=0.7)


@pytest.mark.long
def test_a_real_run_on_the_digits(tmp_path, monkeypatch):
    """What the machine gives is noise on a network this small; that the loop runs and reports is what counts."""
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    settings = recipe(latency=0.8, allocation="uniform")
    settings = replace(settings, budget=replace(settings.budget, round_to=16))
    run = prune_and_export(settings, tmp_path / "out")
    jsonschema.validate(json.loads((run.folder / "report.json").read_text()), schema())
    found = run.report["latency_budget"]
    assert 1 <= len(found["tries"]) <= 5
    assert found["table"]["measured_points"] > 10
    assert list((tmp_path / "cache" / "latency").glob("conv-*.json"))
    assert found["low"] <= found["measured"] <= found["high"]
