"""Chains of kills: their schedule, and a run that is killed and resumed until it ends."""

import collections
import itertools
import math
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.resume.files import FILES, broken, hashes, temporaries
from benchmarks.resume.runs import POLL_SECONDS, Undisturbed, running

KILLS_PER_CHAIN = 5


@dataclass(frozen=True)
class Kill:
    """A scheduled kill: its stage, the seed of its time, and whether the stage was drawn by its duration."""

    stage: str
    seed: str
    by_time: bool


def schedule(runs: Mapping[str, Undisturbed], kills: int, seed: int) -> list[tuple[str, list[Kill]]]:
    """The variant and the kills of every chain; the first is drawn by time, the others in the stages with the fewest kills so
    far.
    """
    chains = []
    aimed: collections.Counter[str] = collections.Counter()
    for number in range(math.ceil(kills / KILLS_PER_CHAIN)):
        variant = list(runs)[number % len(runs)]
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
    """Run, kill, resume, kill, …, resume to the end; returns the stage at each kill, and how the files compare."""
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
    """Start or resume, and kill at the drawn time; if the run ended before it, resume and draw another time."""
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
