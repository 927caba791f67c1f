"""Fused biases: which files run with them. CPU sessions stand in for CUDA's: with the option they are as the test says."""

from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch

from secateur.export.measure import fused_biases, latency
from secateur.export.measure.fused_biases import timing_conditions, try_fused_biases
from secateur.export.measure.latency import TimingSettings, compare_latencies
from secateur.export.measure.telemetry import observed_conditions
from secateur.export.onnx.model import export_onnx
from secateur.export.runtime.bound_runs import BoundRuns
from secateur.export.runtime.providers import CudaOptions
from secateur.network.load import load_model

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fused")
    paths = [folder / name for name in ("a.onnx", "b.onnx")]
    for path in paths:
        export_onnx(load_model("digits"), path)
    return paths


@pytest.fixture
def card(monkeypatch):
    """A run takes 10 ms, and with fused biases 10 ms over the file's ``speedup``, with ``add`` on its scores."""
    now, opened = [0.0], []

    def with_option(speedup, add=0.0, error=None):
        def bind(classifier, images, outputs, provider, settings):
            fused, name = settings.cuda.fused_biases, classifier.path.name
            opened.append((name, fused))
            if fused and error:
                raise RuntimeError(f"{classifier.path}: {error}")
            scores = np.arange(len(images) * outputs, dtype=np.float32).reshape(len(images), outputs)
            seconds = 0.01 / (speedup[name] if fused else 1.0)

            def run():
                now[0] += seconds
                return scores + add if fused else scores

            return BoundRuns(run, run)

        monkeypatch.setattr(fused_biases, "bind", bind)
        monkeypatch.setattr(latency, "bind", bind)
        monkeypatch.setattr(fused_biases.time, "perf_counter", lambda: now[0])
        return opened

    return with_option


def test_other_providers_try_nothing(files):
    settings = TimingSettings("cpu")
    assert try_fused_biases([files], SHAPE, 2, settings) == (settings, ())


def test_what_is_right_and_faster_is_kept_for_both_sides(files, card):
    card({"a.onnx": 1.25, "b.onnx": 0.99})
    settings, trials = try_fused_biases([files], SHAPE, 2, TimingSettings("cuda"))
    assert [trial.kept for trial in trials] == [True, True]
    assert [trial.speedup for trial in trials] == pytest.approx([1.25, 0.99])
    assert [trial.difference for trial in trials] == [0, 0]
    assert all(settings.session_of(path).cuda == CudaOptions(fused_biases=True) for path in files)
    assert settings.session_of(Path("other.onnx")).cuda == CudaOptions()


@pytest.mark.parametrize(
    ("speedup", "add", "error", "problem"),
    [
        ({"a.onnx": 1.25, "b.onnx": 0.9}, 0.0, None, "slower"),
        ({"a.onnx": 1.25, "b.onnx": 1.25}, np.nan, None, "NaN or infinite"),
        ({"a.onnx": 1.25, "b.onnx": 1.25}, 1.0, None, "differ by more than 0.02"),
        ({"a.onnx": 1.25, "b.onnx": 1.25}, 0.0, "unknown option", "unknown option"),
    ],
)
def test_what_fails_one_file_is_not_used_for_any_of_its_group(files, card, speedup, add, error, problem):
    card(speedup, add, error)
    settings, trials = try_fused_biases([files], SHAPE, 2, TimingSettings("cuda"))
    assert settings.fused == ()
    assert not any(trial.kept for trial in trials)
    assert problem in trials[1].problem
    assert str(files[0].parent) not in trials[1].problem, "no path of the machine in a report"


def test_groups_choose_on_their_own_and_a_group_that_gains_nothing_stays_without(files, card):
    card({"a.onnx": 1.25, "b.onnx": 0.985})
    settings, trials = try_fused_biases([files[:1], files[1:]], SHAPE, 2, TimingSettings("cuda"))
    assert settings.fused == (files[0],)
    assert [trial.kept for trial in trials] == [True, False]
    assert not trials[1].problem


def test_the_choice_reaches_the_timed_sessions(files, card, monkeypatch):
    opened = card({"a.onnx": 1.0, "b.onnx": 1.0})
    monkeypatch.setattr(latency, "SECONDS", 0.05)
    compare_latencies(files[0], files[1:], SHAPE, 2, TimingSettings("cuda", fused=(files[1],)))
    assert set(opened) == {("a.onnx", False), ("b.onnx", True)}


def test_the_report_says_what_was_tried(files, card, schema_of_reports):
    card({"a.onnx": 1.25, "b.onnx": 1.25})
    settings, trials = try_fused_biases([files], SHAPE, 2, TimingSettings("cuda"))
    with observed_conditions() as conditions:
        pass
    found = {**conditions.to_json(), **timing_conditions(settings, trials)}
    part = {"$defs": schema_of_reports["$defs"], **schema_of_reports["properties"]["conditions"]}
    jsonschema.validate(found, part)
    assert found["cuda"]["options"] == {"cudnn_conv_algo_search": "EXHAUSTIVE", "prefer_nhwc": "1"}
    assert [row["file"] for row in found["cuda"]["fused_biases"]] == ["a.onnx", "b.onnx"]
    jsonschema.validate({**found, **timing_conditions(replace(settings, provider="cpu"), ())}, part)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("graphs", [False, True])
def test_on_a_card_the_scores_agree_or_the_option_is_refused(files, graphs):
    settings, trials = try_fused_biases([files], SHAPE, 8, TimingSettings("cuda", cuda_graphs=graphs))
    for trial in trials:
        assert trial.kept or trial.problem or trial.speedup is not None
        if trial.kept:
            assert trial.difference <= fused_biases.AGREEMENT
    (found,) = compare_latencies(files[0], files[1:], SHAPE, 8, settings)
    assert found.device_ratio.ratio > 0
