"""`prune-and-export` as a process that is observed from outside and can be killed, and an undisturbed run."""

import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.resume.files import hashes

COMMAND = """
import secateur.pipeline.prune_and_export
print("✓ start  ", flush=True)
from secateur.cli import main
main()
"""  # `secateur` unchanged, except for a line once everything is imported
POLL_SECONDS = 0.001


class Run:
    """`prune-and-export` in a separate process group, observed from outside.

    ``ended`` holds each finished stage with the seconds after the start at which its end was observed.
    """

    def __init__(self, options: Sequence[str], folder: Path, log: Path) -> None:
        self._first_file = (
            folder / "recipe.toml"
        )  # no line is printed once the report is assembled, so its files are watched
        self._before = _stamp(self._first_file)
        self._text, self._log = "", log.open("w+", encoding="utf-8")
        self.ended: dict[str, float] = {}
        self._begin = time.monotonic()
        command = [sys.executable, "-c", COMMAND, "prune-and-export", *options, "--out", str(folder)]
        self.process = subprocess.Popen(
            command, stdout=self._log.fileno(), stderr=subprocess.STDOUT, start_new_session=True
        )
        self._read = log.open(encoding="utf-8")

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._begin

    def is_over(self) -> bool:
        """Update the finished stages, and return whether the run itself has ended."""
        over = self.process.poll() is not None
        now = self.seconds
        *lines, self._text = (self._text + self._read.read()).split("\n")
        for line in lines:
            if line.startswith("✓ "):
                self.ended[line[2:].partition("  ")[0]] = now
            elif line.startswith("report: "):
                self.ended |= {"report": self.ended.get("report", now), "files": now}
        delivers = _stamp(self._first_file) != self._before
        if delivers and "latency" in self.ended and "report" not in self.ended:
            self.ended["report"] = now
        return over

    def kill(self) -> None:
        """Send SIGKILL to the whole group, after reading the stages that have ended."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.is_over()

    def close(self) -> None:
        """End the process if it still runs, and close the log."""
        if self.process.poll() is None:
            self.kill()
        self._log.close()
        self._read.close()


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


@dataclass(frozen=True)
class Undisturbed:
    """An undisturbed run: SHA-256 by file, and each stage's start and duration in seconds, in order."""

    options: tuple[str, ...]
    hashes: Mapping[str, str]
    begins: Mapping[str, float]
    seconds: Mapping[str, float]


@contextmanager
def running(options: Sequence[str], folder: Path) -> Iterator[Run]:
    """A run that is ended with the block; its log is next to the run folder."""
    run = Run(options, folder, folder.with_suffix(".log"))
    try:
        yield run
    finally:
        run.close()


def run_undisturbed(options: tuple[str, ...]) -> Undisturbed:
    """The expected files of a run, and the times of its stages."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        with running(options, folder) as run:
            while not run.is_over():
                time.sleep(POLL_SECONDS)
        if run.process.returncode:
            raise SystemExit(f"The undisturbed run with {options} failed:\n{folder.with_suffix('.log').read_text()}")
        moments = [0.0, *run.ended.values()]
        begins = dict(zip(run.ended, moments, strict=False))
        seconds = {name: end - begin for name, (begin, end) in zip(begins, itertools.pairwise(moments), strict=True)}
        return Undisturbed(options, hashes(folder), begins, seconds)
