"""A largest drop, several rounds and a budget in bytes, end to end on the digits."""

import json
import shutil
from dataclasses import replace

import jsonschema
import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from secateur import load_images, load_model, prune_and_export
from secateur.common.errors import ExitCode
from secateur.common.files import sha256_file
from secateur.export.report.content import schema
from secateur.network.saved import load_network
from secateur.pipeline.inputs import load_inputs
from secateur.pipeline.recipe.recipe import Recipe
from secateur.pipeline.stages.candidates import Candidates
from secateur.pipeline.stages.ranking import find_channels, rank
from secateur.pipeline.stages.store import StageStore
from secateur.prune import surgery
from shell import secateur

ARTEFACTS = ("plan.json", "model.onnx", "baseline.onnx", "model.safetensors", "recipe.toml")


def recipe(**options):
    """Quick: no fine-tuning, no measured sensitivities, latency at one batch size."""
    quick = Recipe().override(page=False, epochs=0, allocation="uniform", repair="bn", calibration=200, **options)
    return replace(quick, measurement=replace(quick.measurement, batches=(1,)))


def report_of(folder):
    report = json.loads((folder / "report.json").read_text())
    jsonschema.validate(report, schema())
    return report


def correct(network):
    """Which validation images a network gets right."""
    images = load_images("digits", network.preprocessing).validation
    with torch.no_grad():
        predicted = torch.cat([network.logits(batch).argmax(1) for batch, _ in images.batches(100)])
    return (predicted == images.labels).numpy()


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    return prune_and_export(recipe(max_drop=4.0), tmp_path_factory.mktemp("searched") / "out")


@pytest.fixture(scope="module")
def barren(tmp_path_factory, recorder):
    """A limit so low that the interval of no try stays below it."""
    observer = recorder()
    run = prune_and_export(recipe(max_drop=0.001), tmp_path_factory.mktemp("barren") / "out", observer=observer)
    return run, observer


@pytest.fixture(scope="module")
def rounded(tmp_path_factory):
    return prune_and_export(recipe(size=0.4, rounds=2), tmp_path_factory.mktemp("rounded") / "out")


def test_the_cheapest_try_that_held_is_shipped(searched):
    report = report_of(searched.folder)
    search = report["search"]
    held = [trial for trial in search["trials"] if trial["high"] <= 4.0]
    won = search["trials"][search["chosen"]]
    assert searched.exit_code == ExitCode.OK
    assert [trial["holds"] for trial in search["trials"]] == [trial in held for trial in search["trials"]]
    assert 0 < len(held) < len(search["trials"]), "a curve on one side of the limit would show nothing"
    assert won["left"] == min(trial["left"] for trial in held)
    assert report["pruned"]["macs"] / report["baseline"]["macs"] == won["left"] <= won["fraction"]
    assert json.loads((searched.folder / "plan.json").read_text())["fraction"] == won["fraction"]
    (gate,) = report["gates"]
    assert (gate["name"], gate["value"], gate["limit"], gate["verdict"]) == ("budget", won["high"], 4.0, "pass")


def test_the_drop_of_the_search_is_that_of_the_shipped_network_on_validation_images(searched):
    search = searched.report["search"]
    won = search["trials"][search["chosen"]]
    before, after = correct(load_model("digits")), correct(load_model(str(searched.folder)))
    assert won["points"] == pytest.approx(100 * (before.mean() - after.mean()))
    draws = np.random.default_rng(7).integers(0, len(before), (4000, len(before)))
    lost = 100 * (before[draws].mean(1) - after[draws].mean(1))
    assert (won["low"], won["high"]) == pytest.approx(np.quantile(lost, (0.025, 0.975)), abs=0.4)


def test_resume_takes_all_stages_of_a_search_from_the_folder(searched, tmp_path, recorder):
    folder = tmp_path / "resumed"
    shutil.copytree(searched.folder, folder)
    before = {name: sha256_file(folder / name) for name in ARTEFACTS}
    observer = recorder()
    again = prune_and_export(recipe(max_drop=4.0), folder, resume=True, observer=observer)
    labels = [f"{trial['fraction']:.3f}" for trial in searched.report["search"]["trials"]]
    tries = [f"{stage} {label}" for label in labels for stage in ("plan", "repair", "judge", "try")]
    assert observer.skips == ["explain", *tries, "export", "time of plan", "accuracy", "latency"]
    assert {name: sha256_file(folder / name) for name in ARTEFACTS} == before
    assert again.report["search"] == searched.report["search"]
    other = recorder()
    prune_and_export(recipe(macs=0.5), folder, resume=True, observer=other)
    assert other.skips[:3] == ["explain", "plan", "repair"], "the first try is the plan at a half"


def test_where_nothing_holds_the_original_is_shipped_and_the_run_fails(barren):
    run, observer = barren
    report = report_of(run.folder)
    assert run.exit_code == ExitCode.GATE_FAILED
    assert report["search"]["chosen"] is None
    assert not any(trial["holds"] for trial in report["search"]["trials"])
    (gate,) = report["gates"]
    assert gate["verdict"] == "fail"
    assert "Nothing was cut" in gate["meaning"]
    assert gate["value"] == min(trial["high"] for trial in report["search"]["trials"]) > gate["limit"] == 0.001
    assert any("Nothing was cut" in text for text in observer.told)
    assert all(report["pruned"][name] == report["baseline"][name] for name in ("macs", "parameters", "accuracy"))
    images = load_model("digits").example(16).numpy()
    scores = [
        onnxruntime.InferenceSession(run.folder / name, providers=["CPUExecutionProvider"]).run(
            None, {"images": images}
        )[0]
        for name in ("baseline.onnx", "model.onnx")
    ]
    assert np.array_equal(*scores)
    original, back = load_model("digits").module.state_dict(), load_network(run.folder).module.state_dict()
    assert original.keys() == back.keys()
    assert all(torch.equal(original[name], back[name]) for name in original)
    plan = json.loads((run.folder / "plan.json").read_text())
    assert (plan["cut"], plan["missed"], plan["before"]) == ({}, "", plan["after"])


def test_two_rounds_within_a_budget_in_bytes(rounded):
    report = report_of(rounded.folder)
    plan = json.loads((rounded.folder / "plan.json").read_text())
    assert rounded.exit_code == ExitCode.OK
    assert [[step["name"] for step in one["steps"]] for one in report["rounds"]] == [["mean", "bn"]] * 2
    assert report["rounds"][-1]["steps"] == report["repair"]["steps"]
    assert {gone for group in plan["groups"] for gone in group["rounds"]} == {0, 1, 2}
    for group in plan["groups"]:
        assert [unit for unit, gone in enumerate(group["rounds"]) if gone] == group["removed"]
    (gate,) = report["gates"]
    stored = [
        sum(4 * tensor.numel() for name, tensor in tensors.items() if "num_batches" not in name)
        for tensors in (load_model("digits").module.state_dict(), load_file(rounded.folder / "model.safetensors"))
    ]
    assert gate["value"] == stored[1] / stored[0] <= 0.4
    assert gate["value"] > 0.36, "a budget is there to be used"
    assert (plan["resource"], plan["fraction"]) == ("size", 0.4)
    text = (rounded.folder / "report.md").read_text()
    assert f"{100 * gate['value']:.1f}% of the bytes of weights in 2 rounds" in text


def test_why_a_kernel_goes_names_its_round(rounded):
    code, stdout, stderr = secateur("plan", "--explain", "block3.conv1", "--out", rounded.folder)
    assert code == 0, stderr
    plan = json.loads((rounded.folder / "plan.json").read_text())
    (group,) = [group for group in plan["groups"] if group["name"] == "block3.conv1"]
    assert stdout.count("goes") == len(group["removed"])
    assert {f"in round {number}" in stdout for number in (1, 2)} == {True}


def test_a_folder_of_rounds_or_of_a_search_is_planned_anew(rounded, searched, tmp_path):
    for run, name in ((rounded, "rounded"), (searched, "searched")):
        shutil.copytree(run.folder, tmp_path / name, ignore=shutil.ignore_patterns(".secateur"))
    code, _, stderr = secateur("plan", "--macs", "0.7", "--out", tmp_path / "rounded")
    assert code == 0, stderr
    assert "rounds" not in (tmp_path / "rounded" / "plan.json").read_text()
    code, _, stderr = secateur("plan", "--out", tmp_path / "searched")
    assert code == ExitCode.USAGE
    assert "drop of at most 4 points" in stderr
    assert secateur("plan", "--size", "0.6", "--out", tmp_path / "searched")[0] == 0


@pytest.mark.parametrize(
    ("macs", "rounds", "round_to", "working", "missed"),
    [
        (0.97, 4, 16, [1], False),
        (0.5, 3, "auto", [1, 2, 3], False),
        (0.001, 3, 8, [1, 2], True),
        (0.3, 2, 32, [1], True),
    ],
)
def test_rounds_that_go_far_enough_early_or_no_further_end_well(tmp_path, macs, rounds, round_to, working, missed):
    """Coarse widths take a round past the goals of later ones; a budget out of reach leaves later rounds nothing."""
    settings = recipe(macs=macs, rounds=rounds, round_to=round_to, rank_by="magnitude").override(repair="none")
    inputs = load_inputs(settings)
    store = StageStore(tmp_path)
    candidates = Candidates(inputs, rank(inputs, find_channels(inputs, store), store), store)
    found = candidates.make(settings.budget)
    left = found.plan.after.macs / found.plan.before.macs
    assert len(found.repairs) == rounds
    assert bool(found.plan.missed) == (left > macs) == missed
    cut_in = {number for group in found.plan.groups for number in group.rounds} - {0}
    assert cut_in == set(working)
    assert sum(parameter.numel() for parameter in found.network.module.parameters()) == found.plan.after.parameters
    whole = surgery.cut(inputs.network, found.plan)
    x = whole.example()
    assert torch.equal(whole.logits(x), found.network.logits(x))


def test_the_plan_that_a_search_timed_is_cut_and_not_made_again(tmp_path, monkeypatch):
    settings = recipe(macs=0.5, rank_by="magnitude").override(allocation="uniform", repair="none")
    inputs = load_inputs(settings)
    store = StageStore(tmp_path)
    candidates = Candidates(inputs, rank(inputs, find_channels(inputs, store), store), store)
    timed = candidates.plan_to(settings.budget.of(0.7), " 0.7")
    monkeypatch.setattr("secateur.pipeline.stages.candidates.plan_stage", lambda *_: pytest.fail("planned again"))
    assert candidates.make(settings.budget.of(0.7), " 0.7").plan.cut == timed.cut
