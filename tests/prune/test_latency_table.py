import json

import numpy as np
import pytest

from secateur.common.errors import InputError
from secateur.prune.latency_table import LatencyTable, LayerTimes


def table_of(function, outputs, inputs):
    return LayerTimes(tuple(outputs), tuple(inputs), tuple(tuple(function(o, i) for i in inputs) for o in outputs))


def test_between_measured_widths_it_is_bilinear():
    """A time that is a + b*out + c*in + d*out*in is met exactly everywhere within the grid."""

    def ms(outputs, inputs):
        return 0.3 + 0.02 * outputs + 0.01 * inputs + 0.005 * outputs * inputs

    times = table_of(ms, (16, 48, 64), (8, 24, 56))
    for outputs in range(16, 65, 16):
        for inputs in (8, 24, 40, 56):
            assert times.at(outputs, inputs) == pytest.approx(ms(outputs, inputs), rel=1e-12)


def test_a_width_off_the_blocks_is_not_taken_for_one_on_them():
    """Odd widths cost 5 more; multiples of eight lie between them."""
    widths = (1, 7, 8, 15, 16, 24, 31, 32)
    times = table_of(lambda o, i: o + (5 if o % 8 else 0), widths, (3,))
    assert times.at(19, 3) == pytest.approx(19 + 5)
    assert times.at(16, 3) == 16
    assert times.at(24, 3) == 24


def test_a_layer_without_channels_takes_nothing_and_ends_are_kept():
    times = table_of(lambda o, i: float(o * i), (8, 16), (4, 8))
    assert times.at(0, 8) == times.at(8, 0) == 0.0
    assert times.at(100, 100) == 16 * 8
    depthwise = LayerTimes((8, 16), (0,), ((1.0,), (2.0,)))
    assert depthwise.at(16, 16) == 2.0
    assert depthwise.at(12, 12) == 1.5


def test_a_disturbed_point_is_corrected_from_wider_ones_of_the_same_alignment():
    clean = table_of(lambda o, i: 1.0 + o * i, (8, 16, 24, 32), (16, 32))
    generator = np.random.default_rng(0)
    disturbed = np.array(clean.ms)
    disturbed[0, 0] += 1000
    disturbed[1, 1] += 3
    corrected = LayerTimes(clean.outputs, clean.inputs, tuple(map(tuple, disturbed))).monotone()
    assert corrected.ms[0][0] == clean.ms[0][1], "the least of the wider ones: 8 and 24 outputs, 16 and 32 inputs"
    assert corrected.ms[1][1] == clean.ms[1][1] + 3, "32 inputs, 16 outputs: the wider one takes longer still"
    assert clean.monotone() == clean
    noise = generator.exponential(1.0, (4, 2))
    noisy = LayerTimes(clean.outputs, clean.inputs, tuple(map(tuple, np.array(clean.ms) + noise))).monotone()
    assert (np.array(noisy.ms) >= np.array(clean.ms)).all()
    assert (np.array(noisy.ms) <= np.array(clean.ms) + noise).all()


def test_it_survives_the_disk_and_a_damaged_file_is_named(tmp_path):
    times = table_of(lambda o, i: o / 7 + i / 3, (8, 16), (4, 8))
    table = LatencyTable({"a": (times, times), "b": (times,)}, 0.25, {"provider": "cpu", "batch": 1}, 0.9)
    table.save(tmp_path / "table.json")
    back = LatencyTable.load(tmp_path / "table.json")
    assert back == table
    assert back.sha256 == table.sha256
    assert table.measured_points == 4
    assert table.layer_ms("a", 8, 4) == pytest.approx(0.9 * 2 * (8 / 7 + 4 / 3))
    assert table.layer_ms("elsewhere", 8, 4) == 0
    (tmp_path / "table.json").write_text(json.dumps({"layers": {"a": 3}}))
    with pytest.raises(InputError, match=r"table\.json is no latency table"):
        LatencyTable.load(tmp_path / "table.json")
