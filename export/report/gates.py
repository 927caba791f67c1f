"""Gates: compare measurements with thresholds, and turn the verdicts into an exit code."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...common.errors import ExitCode
from ..measure.accuracy import Drop
from ..measure.paired_ratio import Ratio
from ..settings import GateSettings

PASS, FAIL, NOT_MEASURED, BEST_EFFORT = "pass", "fail", "not measured", "best effort"
"""The verdicts. Best effort is that of a budget which was missed and need not be met: it does not fail."""


@dataclass(frozen=True)
class Gate:
    """One threshold: the conservative bound of the measurement, the limit, and the verdict."""

    name: str
    value: float | str | None
    limit: float | str
    verdict: str
    meaning: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class BudgetCheck:
    """The reached value against the requested one; ``missed`` says why the budget was missed, and is empty if it was met.

    ``best_effort``: whether a missed budget is accepted.
    """

    value: float
    limit: float
    missed: str
    meaning: str
    best_effort: bool = False


def judge(
    settings: GateSettings,
    *,
    budget: BudgetCheck,
    drop: Drop | None,
    speedup: Ratio | None,
    onnx_bytes: int | None,
    provider: str,
    measure: str = "top-1 accuracy",
    latency_of: str = "end-to-end",
) -> tuple[Gate, ...]:
    """Judge all gates that are set, and always the budget.

    A drop passes if the upper bound of its confidence interval is below the limit, a speedup if the lower bound reaches it, a
    size if it is below. Gates that could not be measured do not pass. ``measure`` names the quantity that drops,
    ``latency_of`` what ``speedup`` is of: end-to-end or device.
    """
    missed = BEST_EFFORT if budget.best_effort else FAIL
    verdict = missed if budget.missed else PASS
    gates = [Gate("budget", budget.value, budget.limit, verdict, budget.missed or budget.meaning)]
    if settings.require_drop_below is not None:
        limit = settings.require_drop_below
        verdict = NOT_MEASURED if drop is None else PASS if drop.high < limit else FAIL
        gates.append(
            Gate(
                "drop",
                drop.high if drop else None,
                limit,
                verdict,
                f"upper bound of the drop in {measure}, points; must be below the limit",
            )
        )
    if settings.require_speedup is not None:
        limit, where = settings.require_speedup, " on the device" if latency_of == "device" else ""
        verdict = NOT_MEASURED if speedup is None else PASS if speedup.low >= limit else FAIL
        gates.append(
            Gate(
                "speedup",
                speedup.low if speedup else None,
                limit,
                verdict,
                f"lower bound of the speedup{where} (baseline time over pruned time); must reach the limit",
            )
        )
    if settings.require_size_below is not None:
        limit = settings.require_size_below
        size = None if onnx_bytes is None else onnx_bytes / 1e6
        verdict = NOT_MEASURED if size is None else PASS if size < limit else FAIL
        gates.append(Gate("size", size, limit, verdict, "megabytes of model.onnx; must be below the limit"))
    if settings.require_provider is not None:
        verdict = PASS if provider == settings.require_provider else FAIL
        gates.append(
            Gate("provider", provider, settings.require_provider, verdict, "the execution provider that ran the files")
        )
    return tuple(gates)


def exit_code(gates: Sequence[Gate]) -> ExitCode:
    """0 if no gate failed and all were measured, otherwise 1."""
    return ExitCode.OK if all(held(gate.verdict) for gate in gates) else ExitCode.GATE_FAILED


def held(verdict: str) -> bool:
    """Whether a verdict lets a run end with exit code 0."""
    return verdict in (PASS, BEST_EFFORT)
