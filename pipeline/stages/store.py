"""Stages as values, and the store that runs them, stores their results by the hash of their inputs, and reuses them."""

import contextlib
import functools
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ...common.files import read_json, sha256_json, write_json
from ...common.progress import Observer, Progress

T = TypeVar("T")


@dataclass(frozen=True)
class Workplace:
    """The working folder of a stage for its result, and its ``progress`` callback of (done, total)."""

    folder: Path
    progress: Progress
    _scratch: Path

    @property
    def scratch(self) -> Path:
        """A folder for these inputs only that survives an interruption, for checkpoints; removed when the stage is done."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        return self._scratch


@dataclass(frozen=True)
class Stage(Generic[T]):
    """One stage of a run.

    ``name`` is shown to the user; its first word is the kind ("plan round 2" is a "plan"). ``inputs`` are all JSON values that
    determine the result: equal inputs give equal results. ``work`` writes the result into its workplace's folder, ``load``
    reads it.
    """

    name: str
    inputs: Mapping[str, Any]
    work: Callable[[Workplace], object]
    load: Callable[[Path], T]

    @property
    def kind(self) -> str:
        return self.name.split(" ")[0]

    @functools.cached_property
    def key(self) -> str:
        """The hash of the kind and the inputs, for the stages that build on the result."""
        return sha256_json([self.kind, self.inputs])


class StageStore:
    """Runs stages, each in a folder named by its key; folders appear atomically.

    ``timings`` holds the seconds of every stage by its name. Without ``resume``, the first stage that runs removes the results
    of earlier runs, since the inputs have passed all checks by then.
    """

    def __init__(self, root: Path, resume: bool = False, observer: Observer | None = None) -> None:
        self.root, self.resume, self.observer = root, resume, observer or Observer()
        self.timings: dict[str, float] = {}
        self._keeps_earlier = resume

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[Progress]:
        """A stage without a stored result, which every run repeats."""
        start = time.perf_counter()
        with self.observer.stage(name) as progress:
            yield progress
        self.timings[name] = time.perf_counter() - start

    @contextlib.contextmanager
    def unstored(self, name: str, inputs: Mapping[str, Any]) -> Iterator[Path]:
        """A folder for the checkpoints of a long computation of these inputs, whose result stays in memory."""
        stage = Stage[None](name, inputs, lambda place: None, lambda folder: None)
        scratch = self._scratch(stage)
        self._forget_earlier()
        scratch.mkdir(parents=True, exist_ok=True)
        yield scratch
        self._tidy(stage)

    def run(self, stage: Stage[T]) -> T:
        """Run the stage, unless a stored result of the same inputs can be reused; returns the loaded result."""
        folder = self.root / f"{stage.kind}-{stage.key[:16]}"
        if self.resume and (folder / "done.json").is_file():
            self.timings[stage.name] = read_json(folder / "done.json")["seconds"]
            self.observer.skipped(stage.name)
            self._tidy(stage)  # the process may have been killed in between
            return stage.load(folder)
        self._forget_earlier()
        partial = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with self.timed(stage.name) as progress:
            stage.work(Workplace(partial, progress, self._scratch(stage)))
        write_json(partial / "done.json", {"seconds": self.timings[stage.name]})
        _discard(folder)
        partial.replace(folder)
        self._tidy(stage)
        return stage.load(folder)

    def _scratch(self, stage: Stage[Any]) -> Path:
        return self.root / f".{stage.kind}-{stage.key[:16]}.scratch"

    def _forget_earlier(self) -> None:
        if self._keeps_earlier:
            return
        self._keeps_earlier = True
        for earlier in self.root.glob("*/"):
            _discard(earlier)
        shutil.rmtree(self.root, ignore_errors=True)

    def _tidy(self, stage: Stage[Any]) -> None:
        """Remove all scratch folders of a kind, including those of other inputs, since only one stage runs at a time."""
        for scratch in self.root.glob(f".{stage.kind}-*.scratch"):
            shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def unfinished(root: Path, observer: Observer) -> Iterator[StageStore]:
    """A store for a single command: it resumes after an interruption, and keeps nothing once the command is done."""
    yield StageStore(root, resume=True, observer=observer)
    shutil.rmtree(root, ignore_errors=True)


def _discard(folder: Path) -> None:
    """Remove a stage's folder, ``done.json`` first, so that a partly removed folder does not count as finished."""
    (folder / "done.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
