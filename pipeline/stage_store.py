"""Stages of a run, kept in folders named by the hash of their inputs and reused on ``--resume``."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..common.files import read_json, sha256_json, write_json
from ..common.progress import Observer, Progress

T = TypeVar("T")


class Stages:
    """Runs stages, each in a folder named by the hash of its inputs; a folder is there whole or not at all.

    ``keys`` holds the hash of every stage so far by its name, for the stages that go on from it; ``timings`` its seconds.
    """

    def __init__(self, root: Path, resume: bool = False, observer: Observer | None = None) -> None:
        self.root, self.resume, self.observer = root, resume, observer or Observer()
        self.keys: dict[str, str] = {}
        self.timings: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[Progress]:
        """A stage that is done anew in every run."""
        start = time.perf_counter()
        with self.observer.stage(name) as progress:
            yield progress
        self.timings[name] = time.perf_counter() - start

    def scratch(self, name: str) -> Path:
        """A folder, named by a stage's inputs, for what it keeps to go on after a stop; it goes when the stage is done."""
        folder = self.root / f".{_kind(name)}-{self.keys[name][:16]}.scratch"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def run(
        self,
        name: str,
        inputs: Mapping[str, Any],
        work: Callable[[Path, Progress], object],
        load: Callable[[Path], T],
    ) -> T:
        """Let ``work`` write its result into the stage's folder, unless the same inputs were worked on before; ``load`` it."""
        kind = _kind(name)
        self.keys[name] = sha256_json([kind, inputs])
        folder = self.root / f"{kind}-{self.keys[name][:16]}"
        if self.resume and (folder / "done.json").is_file():
            self.timings[name] = read_json(folder / "done.json")["seconds"]
            self.observer.skipped(name)
            self._tidy(name)  # a kill may have come between
            return load(folder)
        if not self.resume and len(self.keys) == 1:  # the inputs are sound, so the stages of earlier runs may go
            for earlier in self.root.glob("*/"):
                _discard(earlier)
            shutil.rmtree(self.root, ignore_errors=True)
        partial = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with self.timed(name) as progress:
            work(partial, progress)
        write_json(partial / "done.json", {"seconds": self.timings[name]})
        _discard(folder)
        partial.replace(folder)
        self._tidy(name)
        return load(folder)

    def _tidy(self, name: str) -> None:
        """Remove the scratch folders of a kind of stage, those for other inputs among them: one stage is in work at a time."""
        for scratch in self.root.glob(f".{_kind(name)}-*.scratch"):
            shutil.rmtree(scratch, ignore_errors=True)


def _kind(name: str) -> str:
    return name.split(" ")[0]


def _discard(folder: Path) -> None:
    """Remove a stage's folder, ``done.json`` first: what a kill leaves of it does not count as finished."""
    (folder / "done.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
