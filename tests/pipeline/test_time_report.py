"""What a report says of time, by hand."""

import pytest

from secateur.export.measure.latency import Comparison, Latency
from secateur.export.measure.paired_ratio import Ratio
from secateur.export.settings import MeasurementSettings
from secateur.pipeline.stages.time_of_plan import TimeOfPlan
from secateur.pipeline.time_report import exported_baseline, uncut_notes


def compared(baseline_ms, other_ms):
    first, second = (Latency(ms, ms, 9, ms, ms) for ms in (baseline_ms, other_ms))
    ratio = baseline_ms / other_ms
    return Comparison(32, first, second, Ratio(ratio, ratio / 1.1, ratio * 1.1), Ratio(1.0, 1.0, 1.0))


def test_the_pruned_file_against_the_baseline_as_torch_exports_it():
    """12 ms as exported, 10 ms clean, 6 ms pruned: the clean file is 1.2 times as fast as exported, the pruned one twice."""
    found = exported_baseline(compared(10, 12), [compared(10, 6)])
    assert found["median_ms"] == 12
    assert found["clean_speedup"]["ratio"] == pytest.approx(1.2)
    pruned = found["pruned_speedup"]
    assert (pruned["low"], pruned["ratio"], pruned["high"]) == pytest.approx((2 / 1.21, 2.0, 2 * 1.21))
    assert exported_baseline(None, [compared(10, 6)]) is None


def row(network, precision, speedup, drop):
    return {
        "network": network,
        "precision": precision,
        "file": f"{network}-{precision}.onnx",
        "speedup": {"32": {"ratio": speedup}} if speedup else {},
        "drop": {"points": drop} if speedup else None,
    }


@pytest.mark.parametrize(
    ("speedup", "drop", "precisions", "said"),
    [
        (2.0, 0.2, ("fp32", "int8"), True),
        (1.3, 0.2, ("fp32", "int8"), False),  # not as fast as asked
        (2.0, 1.5, ("fp32", "int8"), False),  # loses more than the cut
        (2.0, 0.2, ("int8",), False),  # what was planned in
    ],
)
def test_an_uncut_file_that_is_fast_enough_is_named(speedup, drop, precisions, said):
    rows = [row("baseline", "fp32", None, 0), row("baseline", "int8", speedup, drop), row("pruned", "fp32", 1.5, 1.0)]
    notes = uncut_notes(rows, 1.5, MeasurementSettings(precisions=precisions, latency_batch=32))
    assert len(notes) == said
    assert all("baseline-int8.onnx" in note and "2.00 times" in note for note in notes)


def test_what_a_plan_by_macs_gives_in_time():
    assert "1.30 times as fast at batch 1; 1.25 was measured" in TimeOfPlan(1.3).note(1.25, 1)
    text = TimeOfPlan(1.3, 0.4, 0.1, 0.72).note(None, 1)
    assert "0.100 nats instead of 0.400" in text
    assert "72% of the MACs" in text
