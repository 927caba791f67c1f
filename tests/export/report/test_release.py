"""A run against the report of the last release: every gate at its edge, and what is refused."""

import copy
import math

import jsonschema
import numpy as np
import pytest
from scipy import stats

from secateur.common.environment import driver_in
from secateur.common.errors import ExitCode, InputError, UsageError
from secateur.export.measure.accuracy import pack_correct, unpack_correct
from secateur.export.report.gates import FAIL, NOT_MEASURED, PASS, exit_code
from secateur.export.report.release import (
    accuracy_change,
    check_images,
    check_machine,
    judge_release,
    latency_change,
    machine_differences,
)
from secateur.export.report.rendering import to_html, to_markdown
from secateur.export.report.tables import release_rows
from secateur.export.settings import ReleaseSettings
from secateur.network.intervals import wilson_interval
from secateur.pipeline.recipe.recipe import Recipe

IMAGES = 1000


def right(wrong):
    """Which of the images are right: all but those numbered."""
    correct = np.ones(IMAGES, dtype=bool)
    correct[list(wrong)] = False
    return correct


def with_correct(report, correct, **changes):
    """The report whose pruned file got these right."""
    made = copy.deepcopy(dict(report))
    interval = wilson_interval(int(correct.sum()), len(correct))
    made["pruned"] |= {
        "accuracy": float(correct.mean()),
        "accuracy_interval": {"low": interval.low, "high": interval.high},
        "correct": pack_correct(correct),
        **changes,
    }
    made["drop"] |= {"images": len(correct)}
    made["recipe"]["measurement"] = {"latency_batch": 1}
    made["inputs"]["test_sha256"] = "1" * 64
    return made


@pytest.fixture
def release(report):
    return with_latency(with_correct(report, right(range(50))), 1.5)


def judged(release, report, **settings):
    gates, said = judge_release(ReleaseSettings(baseline="old/report.json", **settings), release, report)
    return {gate.name: gate for gate in gates}, said, exit_code(gates)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 1000])
def test_which_images_were_right_survives_packing(count):
    correct = np.random.default_rng(count).random(count) < 0.7
    text = pack_correct(correct)
    assert (unpack_correct(text, count) == correct).all()
    with pytest.raises(ValueError, match="images"):
        unpack_correct(text, count + 8)


def test_the_same_file_again_passes_with_the_rule_of_three(release):
    gates, said, code = judged(release, release)
    assert gates["release accuracy"].value == pytest.approx(300 / IMAGES)
    assert said["drop"]["paired"]
    assert {gate.verdict for gate in gates.values()} == {PASS}
    assert code == ExitCode.OK


def test_the_paired_interval_is_that_of_the_differences(release):
    """Twenty images lost, five won: against the normal interval of the mean of the paired differences."""
    new = with_correct(release, right([*range(5, 50), *range(100, 120)]))
    drop, paired = accuracy_change(release, new)
    differences = np.zeros(IMAGES)
    differences[:5], differences[100:120] = -1, 1
    half = 196 * stats.sem(differences)
    assert paired
    assert drop.points == pytest.approx(1.5)
    assert (drop.low, drop.high) == pytest.approx((1.5 - half, 1.5 + half), abs=0.1)


def test_without_stored_predictions_the_interval_is_newcombes_and_wider(release):
    new = with_correct(release, right([*range(5, 50), *range(100, 120)]))
    paired, _ = accuracy_change(release, new)
    del release["pruned"]["correct"]
    drop, told = accuracy_change(release, new)
    assert not told
    first, second = (wilson_interval(count, IMAGES) for count in (950, 935))
    assert drop.low == pytest.approx(1.5 - 100 * math.hypot(0.95 - first.low, second.high - 0.935))
    assert drop.high == pytest.approx(1.5 + 100 * math.hypot(first.high - 0.95, 0.935 - second.low))
    assert drop.low < paired.low < paired.high < drop.high


@pytest.mark.parametrize(("allowed", "verdict"), [(0.0, PASS), (-1e-9, FAIL)])
def test_accuracy_at_its_edge(release, allowed, verdict):
    new = with_correct(release, right(range(60)))
    high = accuracy_change(release, new)[0].high
    gates, _, code = judged(release, new, allow_accuracy_regression=high + allowed)
    assert gates["release accuracy"].verdict == verdict
    assert code == (ExitCode.OK if verdict == PASS else ExitCode.GATE_FAILED)


@pytest.mark.parametrize(
    ("name", "key", "value", "allowed", "verdict"),
    [
        ("size", "onnx_bytes", 4300, 5.0, PASS),  # 4,096 bytes before: 4.98% more
        ("size", "onnx_bytes", 4301, 5.0, FAIL),  # 5.005% more
        ("macs", "macs", 2_000_000, 0.0, PASS),
        ("macs", "macs", 2_000_001, 0.0, FAIL),
    ],
)
def test_size_and_macs_at_their_edges(release, name, key, value, allowed, verdict):
    new = with_correct(release, right(range(50)), **{key: value})
    gates, _, code = judged(release, new, **{f"allow_{name}_regression": allowed})
    assert gates[f"release {name}"].verdict == verdict
    assert code == (ExitCode.OK if verdict == PASS else ExitCode.GATE_FAILED)


def with_latency(report, ratio, width=0.0, noise=0.0, median=1.0):
    made = copy.deepcopy(report)
    made["ratios"]["latency"]["1"] = {"ratio": ratio, "low": ratio * (1 - width), "high": ratio * (1 + width)}
    made["noise_floor"]["1"] = {"ratio": 1.0, "low": 1 - noise, "high": 1 + noise}
    made["pruned"]["latency"]["1"]["median_ms"] = median
    return made


def test_latency_is_judged_by_the_speed_up_over_the_same_network(release):
    """The machine is twice as slow today; the speedup over the original says that the file is not."""
    old, new = with_latency(release, 1.5, median=1.0), with_latency(release, 1.5, median=2.0)
    change = latency_change(old, new, 1)
    assert change.anchored
    assert change.percent == pytest.approx(0)
    new["baseline"]["macs"] += 1
    change = latency_change(old, new, 1)
    assert not change.anchored
    assert change.percent == pytest.approx(100)


@pytest.mark.parametrize(("ratio", "verdict"), [(1.5 / 1.0999, PASS), (1.5 / 1.1001, FAIL)])
def test_latency_at_its_edge(release, ratio, verdict):
    gates, _, code = judged(with_latency(release, 1.5), with_latency(release, ratio))
    assert gates["release latency"].verdict == verdict
    assert code == (ExitCode.OK if verdict == PASS else ExitCode.GATE_FAILED)


def test_the_careful_end_of_the_slow_down_is_judged_and_the_noise_floor_is_respected(release):
    old, new = with_latency(release, 1.5, width=0.05), with_latency(release, 1.5, width=0.05)
    gates, _, _ = judged(old, new)
    assert gates["release latency"].value == pytest.approx(100 * (1 / 0.95 - 1) + 100 * 0.05 / 0.95)
    assert gates["release latency"].verdict == FAIL
    gates, _, code = judged(old, with_latency(release, 1.5, width=0.05, noise=0.12))
    assert gates["release latency"].limit == pytest.approx(12)
    assert "noise floor" in gates["release latency"].meaning
    assert code == ExitCode.OK


def test_a_batch_size_that_the_release_was_not_timed_at_does_not_pass(release):
    new = copy.deepcopy(release)
    new["recipe"]["measurement"]["latency_batch"] = 64
    gates, said, code = judged(release, new)
    assert gates["release latency"].verdict == NOT_MEASURED
    assert said["latency"] is None
    assert code == ExitCode.GATE_FAILED
    gates, _, code = judged(release, new, baseline_latency=False)
    assert "release latency" not in gates
    assert code == ExitCode.OK


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"processor": "another"}, "processor"),
        ({"cores": 64}, "cores"),
        ({}, None),
        ({"gpu": "unused by the CPU"}, None),
    ],
)
def test_another_cpu_differs(release, change, what):
    other = {**release, "environment": {**release["environment"], **change}}
    assert [difference.what for difference in machine_differences(release, other)] == ([what] if what else [])


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"gpu": "B"}, ["gpu"]),
        ({"driver": "580.1"}, ["driver"]),
        ({"driver": None}, ["driver"]),
        ({"processor": "another"}, []),
    ],
)
def test_another_gpu_or_driver_differs(release, change, what):
    first = {**release, "provider": "cuda", "environment": {**release["environment"], "gpu": "A", "driver": "570.1"}}
    other = {**first, "environment": {**first["environment"], **change}}
    assert [difference.what for difference in machine_differences(first, other)] == what
    assert machine_differences(first, {**first, "provider": "cpu"})[0].what == "provider"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.10  Wed Jan 15 2025\nGCC version: 12.2.0\n", "570.86.10"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65  Release Build  (x)\n", "580.65"),
        ("GCC version:  gcc version 12.2.0 (Debian)\n", None),
    ],
)  # fmt: skip
def test_the_driver_is_read_from_the_kernel_module(text, version):
    assert driver_in(text) == version


def test_another_machine_and_other_images_are_refused(release):
    settings = ReleaseSettings(baseline="old/report.json")
    with pytest.raises(InputError, match=r"old/report\.json was measured on another machine.*--no-baseline-latency"):
        check_machine(release, settings, "cpu")
    check_machine(release, ReleaseSettings(baseline="old/report.json", baseline_latency=False), "cpu")
    check_images(release, settings, "1" * 64, "other", "labels")
    with pytest.raises(InputError, match="test images"):
        check_images(release, settings, "2" * 64, "0" * 64, "labels")
    with pytest.raises(InputError, match="labels against original"):
        check_images(release, settings, "1" * 64, "0" * 64, "original")


def test_settings_say_what_is_wrong():
    with pytest.raises(UsageError, match="--baseline"):
        ReleaseSettings(allow_size_regression=2)
    with pytest.raises(UsageError, match="at least 0"):
        ReleaseSettings("report.json", allow_latency_regression=-1)
    recipe = Recipe().override(baseline="r.json", allow_macs_regression=0, baseline_latency=False)
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_a_report_shows_the_release(release, schema_of_reports):
    _, said, _ = judged(release, with_correct(release, right(range(52))))
    held = {**release, "release": said}
    jsonschema.validate(held, schema_of_reports)
    rows = release_rows(held)
    assert [row[0] for row in rows] == ["top-1 accuracy", "MACs", "ONNX file", "time, batch 1"]
    assert 'id="release"' in to_html(held)
    assert "Against the last release" in to_markdown(held)
    assert "Against the last release" not in to_markdown(release)
