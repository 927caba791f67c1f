import math

import pytest

from secateur.common.errors import ExitCode
from secateur.export.measure.accuracy import Drop
from secateur.export.measure.paired_ratio import Ratio
from secateur.export.report.gates import BEST_EFFORT, FAIL, NOT_MEASURED, PASS, BudgetCheck, exit_code, judge
from secateur.export.settings import GateSettings

DROP = Drop(1.0, 0.5, 2.0, 1000)
SPEEDUP = Ratio(1.5, 1.3, 1.7)


def judged(settings, drop=DROP, speedup=SPEEDUP, size=2_000_000, provider="cpu", missed="", best_effort=False):
    gates = judge(
        settings,
        budget=BudgetCheck(0.5, 0.5, missed, "left", best_effort),
        drop=drop,
        speedup=speedup,
        onnx_bytes=size,
        provider=provider,
    )
    return {gate.name: gate for gate in gates}, exit_code(gates)


@pytest.mark.parametrize(
    ("settings", "name", "verdict"),
    [
        ({"require_drop_below": 2.1}, "drop", PASS),  # the upper end, 2.0, is judged, not the 1.0 measured
        ({"require_drop_below": 2.0}, "drop", FAIL),
        ({"require_speedup": 1.3}, "speedup", PASS),  # the lower end, 1.3, not the 1.5 measured
        ({"require_speedup": 1.31}, "speedup", FAIL),
        ({"require_size_below": 2.1}, "size", PASS),
        ({"require_size_below": 2.0}, "size", FAIL),
        ({"require_provider": "cpu"}, "provider", PASS),
        ({"require_provider": "cuda"}, "provider", FAIL),
    ],
)
def test_each_gate_judges_the_careful_end(settings, name, verdict):
    gates, code = judged(GateSettings(**settings))
    assert gates[name].verdict == verdict
    assert code == (ExitCode.OK if verdict == PASS else ExitCode.GATE_FAILED)


def test_what_was_not_measured_does_not_pass():
    settings = GateSettings(require_drop_below=3, require_speedup=1.1, require_size_below=9)
    gates, code = judged(settings, drop=None, speedup=None, size=None)
    assert {gates[name].verdict for name in ("drop", "speedup", "size")} == {NOT_MEASURED}
    assert code == ExitCode.GATE_FAILED


def test_a_missed_budget_fails_without_being_asked():
    gates, code = judged(GateSettings(), missed="too narrow")
    assert gates["budget"].verdict == FAIL
    assert code == ExitCode.GATE_FAILED


def test_best_effort_accepts_a_missed_budget_and_nothing_else():
    gates, code = judged(GateSettings(require_speedup=1.3), missed="too narrow", best_effort=True)
    assert gates["budget"].verdict == BEST_EFFORT
    assert gates["budget"].meaning == "too narrow"
    assert code == ExitCode.OK
    gates, code = judged(GateSettings(require_speedup=1.4), missed="too narrow", best_effort=True)
    assert code == ExitCode.GATE_FAILED
    gates, code = judged(GateSettings(), best_effort=True)
    assert gates["budget"].verdict == PASS, "a budget that is met is met"


def test_gates_not_asked_for_are_absent():
    gates, code = judged(GateSettings())
    assert set(gates) == {"budget"}
    assert code == ExitCode.OK


BELOW, EQUAL, ABOVE = -1, 0, 1
EDGES = {
    "drop": ({"require_drop_below": 2.0}, lambda value: {"drop": Drop(0.0, 0.0, value, 100)}, 2.0, {BELOW}),
    "speedup": ({"require_speedup": 1.5}, lambda value: {"speedup": Ratio(2.0, value, 3.0)}, 1.5, {EQUAL, ABOVE}),
    "size": ({"require_size_below": 2.0}, lambda value: {"size": round(value * 1e6)}, 2.0, {BELOW}),
}
"""By gate: its setting, what is measured at a value, the limit, and on which sides of it the gate passes."""


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("side", [BELOW, EQUAL, ABOVE, None])
def test_every_gate_at_its_edge(name, side):
    settings, measured, limit, passing = EDGES[name]
    step = 1e-6 if name == "size" else math.ulp(limit)  # one byte; or the next number there is
    given = {name: None} if side is None else measured(limit + side * step)
    gates, code = judged(GateSettings(**settings), **given)
    verdict = NOT_MEASURED if side is None else PASS if side in passing else FAIL
    assert gates[name].verdict == verdict
    assert code == (0 if verdict == PASS else 1)


@pytest.mark.parametrize("required", ["cpu", "cuda", "tensorrt", "openvino"])
@pytest.mark.parametrize("ran", ["cpu", "cuda", "tensorrt", "openvino"])
def test_the_provider_that_ran_is_the_one_required(required, ran):
    gates, code = judged(GateSettings(require_provider=required), provider=ran)
    assert gates["provider"].verdict == (PASS if required == ran else FAIL)
    assert code == (0 if required == ran else 1)
