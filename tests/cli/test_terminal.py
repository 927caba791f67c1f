"""What is said while secateur works, where there is no terminal."""

import io

import pytest
from rich.console import Console

from secateur.cli import terminal
from secateur.cli.terminal import LOG_EVERY_SECONDS, TerminalObserver


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: now[0])
    return now


@pytest.mark.parametrize("quiet", [False, True])
def test_a_log_is_told_now_and_then_how_far_a_long_stage_has_come(clock, quiet):
    console = Console(file=io.StringIO(), width=80)
    with TerminalObserver(console, quiet).stage("sensitivity") as report:
        for done in range(101):
            report(done, 100)
            clock[0] += LOG_EVERY_SECONDS / 40
    lines = console.file.getvalue().splitlines()
    if quiet:
        assert lines == []
        return
    assert [line.split() for line in lines] == [
        ["sensitivity", "20.0", "s,", "40%", "done"],
        ["sensitivity", "40.0", "s,", "80%", "done"],
        ["✓", "sensitivity", "50.5", "s"],
    ]


def test_a_short_stage_has_one_line(clock):
    console = Console(file=io.StringIO(), width=80)
    with TerminalObserver(console).stage("plan") as report:
        report(0, 0)
        clock[0] += 1.0
        report(1, 1)
    assert console.file.getvalue().split() == ["✓", "plan", "1.0", "s"]
