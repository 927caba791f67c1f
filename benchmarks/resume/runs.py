"""`prune-and-export` as a process that is watched from outside and can be killed, and a run that nobody kills."""

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
"""  # `secateur` as it is, but for a line once everything is imported
POLL_SECONDS = 0.001


class Run:
    """`prune-and-export` in a process group of its own, watched from outside.

    ``ended`` holds each stage that is over with the seconds after the start at which that was seen.
    """

    def __init__(self, options: Sequence[str], folder: Path, log: Path) -> None:
        self._first_file = folder / "recipe.toml"  # no line tells that the report is put together; this does
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
        """Look what ended since the last look, and whether the run itself did."""
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
        """SIGKILL to the whole group; what had ended by then is read."""
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
    """A run that nobody killed: SHA-256 by file, and each stage's beginning and length in seconds, in order."""

    options: tuple[str, ...]
    hashes: Mapping[str, str]
    begins: Mapping[str, float]
    seconds: Mapping[str, float]


@contextmanager
def running(options: Sequence[str], folder: Path) -> Iterator[Run]:
    """A run that does not outlive the block; its log lies beside the run folder."""
    run = Run(options, folder, folder.with_suffix(".log"))
    try:
        yield run
    finally:
        run.close()


def run_undisturbed(options: tuple[str, ...]) -> Undisturbed:
    """The files a run should give, and the moments of its stages."""
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
