"""kill -9 and --resume, over and over: python -m benchmarks.resume [--kills 30] [--seed 0] [--minutes 20]

`prune-and-export` on the embedded digits in three variants, each once undisturbed, for the hashes of its files and the
seconds of its stages. Then chains: a run into a fresh folder is killed with its process group, resumed, killed again, up to
five times, and after the last kill resumed to its end. Its files must then be those of the undisturbed run, bit for bit.

Moments: one kill of every chain hits a stage drawn by its share of the undisturbed seconds, so that moment is uniform in
time; the others hit the kinds of stage that were drawn least so far, so that short ones have their turn. Within its stage a
moment is uniform: a draw in [0, 1) of the undisturbed seconds after the stage has begun. A chain goes through its stages in
their order, as a later one is only reached when the earlier are done. Before the stages proper comes "start" (interpreter and
imports), after them "report" (the report is put together) and "files" (the files appear in the run folder).

Rows, one a chain, are kept in the results file and not run again. Exit code 1 if a chain ended with other files, if a kill
left a half-written file under one of our names, or if temporary files still lay about in the end.
"""

import argparse
import collections
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from secateur import __version__
from secateur.common.environment import describe_environment
from secateur.common.files import read_json, sha256_file, write_json

RESULTS = Path(__file__).parent / "results" / "resume.json"
VARIANTS: dict[str, tuple[str, ...]] = {
    "budget": (),
    "search": ("--max-drop", "2", "--epochs", "1"),
    "rounds": ("--rounds", "2", "--macs", "0.5"),
}
FILES = (
    "plan.json", "recipe.toml", "scores.safetensors", "sensitivity.json", "model.safetensors", "model.onnx", "baseline.onnx",
)  # fmt: skip
COMMAND = """
import secateur.pipeline.prune_and_export
print("✓ start  ", flush=True)
from secateur.cli import main
main()
"""  # `secateur` as it is, but for a line once everything is imported
KILLS_PER_CHAIN = 5
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


@dataclass(frozen=True)
class Undisturbed:
    """A run that nobody killed: SHA-256 by file, and each stage's beginning and length in seconds, in order."""

    options: tuple[str, ...]
    hashes: Mapping[str, str]
    begins: Mapping[str, float]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Kill:
    """A kill to come: the stage it is for, what its moment is drawn from, and whether the stage was drawn by its time."""

    stage: str
    seed: str
    by_time: bool


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


def schedule(runs: Mapping[str, Undisturbed], kills: int, seed: int) -> list[tuple[str, list[Kill]]]:
    """For every chain its variant and its kills; the first is drawn by time, the others where kills are fewest so far."""
    chains = []
    aimed: collections.Counter[str] = collections.Counter()
    for number in range(math.ceil(kills / KILLS_PER_CHAIN)):
        variant = list(VARIANTS)[number % len(VARIANTS)]
        lengths, draw = runs[variant].seconds, random.Random(f"{seed}/{number}")
        chosen: list[tuple[str, bool]] = []
        for index in range(min(KILLS_PER_CHAIN, kills - number * KILLS_PER_CHAIN)):
            if index == 0:
                stage = draw.choices(list(lengths), list(lengths.values()))[0]
            else:
                kinds = sorted({kind(name) for name in lengths})
                fewest = min(aimed[name] for name in kinds)
                rare = draw.choice([name for name in kinds if aimed[name] == fewest])
                stage = draw.choice([name for name in lengths if kind(name) == rare])
            aimed[kind(stage)] += 1
            chosen.append((stage, index == 0))
        order = list(lengths)
        chosen.sort(key=lambda entry: order.index(entry[0]))
        chain = [Kill(stage, f"{seed}/{number}/{index}", free) for index, (stage, free) in enumerate(chosen)]
        chains.append((variant, chain))
    return chains


def run_chain(whole: Undisturbed, kills: Sequence[Kill]) -> dict[str, Any]:
    """Run, kill, resume, kill, …, resume to the end; what was under way at each kill, and how the files compare."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        rows = [run_to_kill(whole, kill, folder) for kill in kills]
        with running((*whole.options, "--resume"), folder) as run:
            code = run.process.wait()
        found = hashes(folder)
        return {
            "kills": rows,
            "exit_code": code,
            "differing": [name for name in FILES if found.get(name) != whole.hashes[name]],
            "left_over": temporaries(folder),
            "seconds": time.monotonic() - begin,
        }


def run_to_kill(whole: Undisturbed, kill: Kill, folder: Path) -> dict[str, Any]:
    """Start or resume, and kill at the moment; where the run ended before it, resume and draw another moment."""
    order = list(whole.seconds)
    before = order[: order.index(kill.stage)]
    options = (*whole.options, "--resume") if folder.exists() else whole.options
    for attempt in itertools.count():
        share = random.Random(f"{kill.seed}/{attempt}").random()
        with running(options, folder) as run:
            while not run.is_over():
                begun = run.ended.get(before[-1]) if before else 0.0
                if begun is not None and run.seconds >= begun + share * whole.seconds[kill.stage]:
                    break
                time.sleep(POLL_SECONDS)
            else:
                if run.process.returncode:
                    raise SystemExit(f"A resumed run with {options} failed:\n{folder.with_suffix('.log').read_text()}")
                options = (*whole.options, "--resume")
                continue
            at = run.seconds
            run.kill()
        return {
            **asdict(kill),
            "missed_before": attempt,
            "share_of_stage": share,
            "at_s": at,
            "under_way": next((name for name in order if name not in run.ended), "end"),
            "temporaries": temporaries(folder),
            "broken": broken(folder, whole.hashes),
        }
    raise AssertionError("unreachable")


def kind(stage: str) -> str:
    """`repair 0.265` and `repair round 2` are both `repair`."""
    return stage.partition(" ")[0]


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of those of the run's files that are there."""
    return {name: sha256_file(folder / name) for name in FILES if (folder / name).is_file()}


def temporaries(folder: Path) -> list[str]:
    """Temporary files of the run folder, without what is random in their names, and stages that are not finished."""
    found = [path.name[1:].removesuffix(".part").rpartition(".")[0] for path in folder.glob(".*.part")]
    return sorted(found + [path.name for path in folder.glob(".secateur/stages/.*.part")])


def broken(folder: Path, wanted: Mapping[str, str]) -> list[str]:
    """Files that are there under their names, of the run and of its finished stages, and are not whole."""
    found = [name for name, value in hashes(folder).items() if value != wanted[name]]
    stages = [path for path in folder.glob(".secateur/stages/*") if not path.name.startswith(".")]
    found += [f"{stage.name}/done.json" for stage in stages if not (stage / "done.json").is_file()]
    for path in (*folder.glob("*.*"), *(file for stage in stages for file in stage.iterdir())):
        if path.name.startswith("."):
            continue
        try:
            _read(path)
        except Exception as error:  # any reader's own kind
            found.append(f"{path.relative_to(folder)}: {error}")
    return found


def _read(path: Path) -> None:
    match path.suffix:
        case ".json":
            read_json(path)
        case ".toml":
            tomllib.loads(path.read_text(encoding="utf-8"))
        case ".safetensors":
            load_file(path)
        case ".onnx":
            onnx.checker.check_model(onnx.load(path))
        case ".xml":
            ElementTree.parse(path)
        case ".html":
            if not path.read_text(encoding="utf-8").rstrip().endswith("</html>"):
                raise ValueError("cut short")
        case ".md":
            path.read_text(encoding="utf-8")
        case other:
            raise ValueError(f"{other} files are not expected")


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def main() -> int:
    if os.name != "posix":
        raise SystemExit("This needs kill -9 and process groups, as POSIX systems have them.")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20, help="start no new chain after this long")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    header = {
        "secateur_version": __version__,
        "environment": describe_environment().to_json(),
        "torch_threads": torch.get_num_threads(),
        "seed": arguments.seed,
    }
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows: list[dict[str, Any]] = found.get("rows", []) if found.items() >= header.items() else []
    if sum(len(row["kills"]) for row in rows) < arguments.kills:
        runs = {name: run_undisturbed(options) for name, options in VARIANTS.items()}
        if rows and any(found["undisturbed"][name]["hashes"] != run.hashes for name, run in runs.items()):
            rows = []  # the code has changed since
        undisturbed = {name: asdict(run) for name, run in runs.items()}
        for number, (variant, kills) in enumerate(schedule(runs, arguments.kills, arguments.seed)):
            rows = [row for row in rows if row["chain"] != number or len(row["kills"]) >= len(kills)]
            if any(row["chain"] == number for row in rows) or time.monotonic() > end:
                continue
            rows.append({"chain": number, "variant": variant, **run_chain(runs[variant], kills)})
            print(rows[-1], flush=True)
            write_json(RESULTS, {**header, "undisturbed": undisturbed, "rows": rows})
    show(rows)
    return int(any(failed(row) for row in rows))


def failed(row: Mapping[str, Any]) -> bool:
    """Whether a chain did not end as it should."""
    return bool(
        row["exit_code"] or row["differing"] or row["left_over"] or any(kill["broken"] for kill in row["kills"])
    )


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """A line per chain, then how many kills each kind of stage had."""
    kills = [kill for row in rows for kill in row["kills"]]
    table = Table(title=f"{len(kills)} kills in {len(rows)} chains, digits")
    for name in ("chain", "variant", "killed in", "half-written", "files as undisturbed", "seconds"):
        table.add_column(name, justify="right" if name in ("chain", "half-written", "seconds") else "left")
    for row in rows:
        table.add_row(
            str(row["chain"]),
            row["variant"],
            ", ".join(kill["under_way"] for kill in row["kills"]),
            str(sum(len(kill["broken"]) for kill in row["kills"])),
            f"no: {', '.join(row['differing'])}" if row["differing"] else "yes",
            f"{row['seconds']:.0f}",
        )
    console = Console(width=120)
    console.print(table)
    counted = collections.Counter(kind(kill["under_way"]) for kill in kills)
    console.print("kills by kind of stage:", ", ".join(f"{name} {count}" for name, count in counted.most_common()))


if __name__ == "__main__":
    sys.exit(main())
