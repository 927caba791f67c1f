"""Accuracy and latency of ONNX files."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from secateur.common.errors import InputError
from secateur.export.measure import latency
from secateur.export.measure.accuracy import measure_accuracy, measure_drop
from secateur.export.measure.latency import compare_latency
from secateur.export.onnx.model import export_onnx
from secateur.network.images.images import images_from_tensor
from secateur.network.images.load import load_images
from secateur.network.images.pictures import Preprocessing
from secateur.network.load import load_model
from secateur.network.network import Network, Source


class Brightest(nn.Module):
    """Class = the quadrant whose mean is highest: accuracy can be counted by hand."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.ones_(self.conv.weight)

    def forward(self, x):
        return nn.functional.adaptive_avg_pool2d(self.conv(x), 2).flatten(1)


@pytest.fixture(scope="module")
def brightest(tmp_path_factory):
    network = Network(Brightest().eval(), Preprocessing((1, 4, 4), (0.0,), (1.0,)), tuple("abcd"), Source("brightest"))
    path = tmp_path_factory.mktemp("brightest") / "model.onnx"
    export_onnx(network, path)
    return network, path


def test_accuracy_counted_by_hand(brightest):
    network, path = brightest
    pixels = torch.zeros(6, 1, 4, 4, dtype=torch.uint8)
    for index, (row, column) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2), (0, 0), (2, 2)]):
        pixels[index, 0, row, column] = 255
    labels = torch.tensor([0, 1, 2, 3, 1, 3])  # the fifth is wrong: it shows quadrant 0
    images = images_from_tensor(pixels, labels, network.preprocessing)
    found = measure_accuracy(path, images, network.class_names)
    assert found.accuracy == 5 / 6
    assert found.per_class == {"a": 1.0, "b": 0.5, "c": 1.0, "d": 1.0}
    assert found.interval.low < 5 / 6 < found.interval.high


def test_a_class_without_images_has_no_accuracy(brightest):
    network, path = brightest
    images = images_from_tensor(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 0]), network.preprocessing)
    assert measure_accuracy(path, images, network.class_names).per_class["d"] is None


def test_wrong_class_count_is_named(brightest):
    network, path = brightest
    images = images_from_tensor(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 0]), network.preprocessing)
    with pytest.raises(InputError, match="expected scores of 3 classes"):
        measure_accuracy(path, images, ("a", "b", "c"))


def test_drop_pairs_the_images(tmp_path):
    network = load_model("digits")
    splits = load_images("digits", network.preprocessing)
    export_onnx(network, tmp_path / "a.onnx")
    worse = network.copy()
    with torch.no_grad():
        worse.module.head.bias[3] += 2.0
    export_onnx(worse, tmp_path / "b.onnx")
    first, second = (
        measure_accuracy(tmp_path / name, splits.test, network.class_names) for name in ("a.onnx", "b.onnx")
    )
    drop = measure_drop(first, second, splits.test)
    labels = splits.test.labels.numpy()
    by_hand = 100 * ((first.predictions == labels).mean() - (second.predictions == labels).mean())
    assert math.isclose(drop.points, by_hand)
    assert drop.low <= drop.points <= drop.high
    same = measure_drop(first, first, splits.test)
    assert same.points == 0
    assert same.high == pytest.approx(300 / 360)


@pytest.fixture
def clock(brightest, monkeypatch):
    """A clock that we set: opening a file takes ``opening`` s, a run of the baseline ``first`` s and of the pruned file a third
    of that, a sixth of that less on the device; every ratio is 3. After another file has run a file takes ``cold`` s more.
    The third session, the baseline's second, is ``apart`` times as slow as the first.
    """
    _, path = brightest
    now, opened, calls = [0.0], [], []
    real = latency.read_classifier(path)

    def compare(first=3e-3, cold=0.0, opening=0.0, apart=1.0):
        def bind(classifier, images, outputs, provider, settings):
            now[0] += opening
            which = len(opened)
            opened.append(which)

            def run(cost):
                now[0] += cost + (cold if calls[-1:] != [which] else 0)
                calls.append(which)

            factor = apart if which == 2 else 1.0
            cost = factor * {"a": first, "b": first / 3}[classifier.input_name]
            return latency.BoundRuns(lambda: run(cost), lambda: run(cost - factor * first / 6))

        sides = iter("ab")
        monkeypatch.setattr(latency, "read_classifier", lambda path: replace(real, input_name=next(sides)))
        monkeypatch.setattr(latency, "bind", bind)
        monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])
        monkeypatch.setattr(latency, "SECONDS", 1.3)
        return compare_latency(path, path, (1, 4, 4), 2), now[0], opened, calls

    return compare


@pytest.mark.parametrize("warmed", [False, True])
def test_sides_take_turns_and_sum_up(clock, monkeypatch, warmed):
    """What a file takes more after another has run is not to be counted where files are warmed."""
    monkeypatch.setattr(latency, "WARM_BELOW_SECONDS", 1.0 if warmed else 0.0)
    found, seconds, opened, calls = clock(cold=1e-3 if warmed else 0.0)
    assert (found.ratio.ratio, found.ratio.low, found.ratio.high) == pytest.approx((3, 3, 3))
    assert found.noise_floor.ratio == pytest.approx(1)
    assert found.baseline.median_ms == pytest.approx(3)
    assert found.baseline.device_median_ms == pytest.approx(2.5)
    assert found.pruned.p95_ms == pytest.approx(1)
    assert found.pruned.images_per_second == pytest.approx(2000)
    assert len(opened) >= 3 * (1 + latency.MIN_BLOCKS), "every block has sessions of its own"
    assert found.sessions == len(opened) // 3 - 1
    assert found.device_ratio.ratio == pytest.approx(2.5 / 0.5)
    assert (found.meant("end-to-end"), found.meant("device")) == (found.ratio, found.device_ratio)
    assert seconds == pytest.approx(3 * latency.SECONDS, rel=0.2)
    calls = calls[:: 1 + warmed]  # each sample is of one run, after one that is not timed
    timed = [which for which in calls if which in opened[3:6]]
    assert any(timed[at : at + 6] == timed[at : at + 3] + timed[at : at + 3][::-1] for at in range(12)), (
        "in an order, then in its reverse"
    )


@pytest.mark.parametrize(("first", "opening"), [(2.0, 0.1), (0.01, 5.0)])
def test_sessions_that_take_long_to_open_or_warm_up_are_kept(clock, first, opening):
    found, seconds, opened, calls = clock(first=first, opening=opening)
    assert (found.ratio.ratio, found.noise_floor.ratio) == pytest.approx((3, 1))
    assert len(opened) == 3
    assert found.sessions == 1
    runs_a_side = len(calls) / 3
    assert runs_a_side >= 2 * latency.KEPT_BLOCKS
    if first == 2.0:
        assert runs_a_side <= 3 * latency.KEPT_BLOCKS + 4, "a round in each block, and little to warm up"
    else:
        assert seconds < 3 * opening + 2 * 3 * latency.SECONDS


@pytest.mark.parametrize("apart", [0.8, 1.25])
def test_what_one_session_differs_from_another_counts_where_each_file_has_one(clock, apart):
    """Two sessions of one file differ by a quarter, so that any other two may; the floor itself shows what it was."""
    found, *_ = clock(first=2.0, opening=0.1, apart=apart)
    assert found.sessions == 1
    assert (found.noise_floor.low, found.noise_floor.high) == pytest.approx((1 / apart, 1 / apart))
    assert (found.ratio.low, found.ratio.ratio, found.ratio.high) == pytest.approx((3 / 1.25, 3, 3 * 1.25))
    device = found.device_ratio
    assert (device.low, device.ratio, device.high) == pytest.approx((5 / 1.25, 5, 5 * 1.25))


def test_an_unsteady_machine_is_given_more_time(brightest, monkeypatch):
    _, path = brightest
    monkeypatch.setattr(latency, "SECONDS", 0.1)
    monkeypatch.setattr(latency, "LONGER", 1.5)
    monkeypatch.setattr(latency, "_width", lambda blocks, side: 1.0)
    many = compare_latency(path, path, (1, 4, 4), 1)
    monkeypatch.setattr(latency, "_width", lambda blocks, side: 0.0)
    few = compare_latency(path, path, (1, 4, 4), 1)
    assert many.baseline.samples > 0 < few.baseline.samples


def test_a_fixed_batch_is_named(brightest, tmp_path):
    import onnx

    _, path = brightest
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "fixed.onnx")
    with pytest.raises(InputError, match=r"only accepts batches of 2 \(got 4\)"):
        compare_latency(tmp_path / "fixed.onnx", path, (1, 4, 4), 4)


@pytest.mark.parametrize(
    ("ratio", "low", "high", "words"),
    [
        (1.5, 1.4, 1.6, "1.50 times as fast"),
        (0.5, 0.4, 0.6, "2.00 times slower"),
        (1.1, 0.9, 1.3, "no measurable change"),
    ],
)
def test_an_interval_that_spans_one_is_no_change(ratio, low, high, words):
    assert latency.Ratio(ratio, low, high).verdict == words


def test_real_files_are_timed(brightest):
    _, path = brightest
    found = compare_latency(path, path, (1, 4, 4), 4)
    assert found.baseline.samples >= 2 * latency.MIN_BLOCKS
    assert 0 < found.baseline.median_ms <= found.baseline.p95_ms
    assert np.isfinite([found.ratio.low, found.ratio.high]).all()
