"""Shared by the benchmarks of methods: networks with their images, and sections of rows that are stored and resumed."""

import argparse
import collections
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from secateur import __version__
from secateur.common.environment import describe_environment, seed_everything
from secateur.common.files import write_json
from secateur.explain.gap.contributions import contributions
from secateur.network.images.images import Images
from secateur.network.images.load import load_images
from secateur.network.images.splits import Splits
from secateur.network.load import load_model, match_classes
from secateur.network.network import Network
from secateur.network.settings import ModelSettings

SHARED = Path(os.environ.get("SECATEUR_SHARED", Path(__file__).resolve().parents[2] / "shared"))


class Case:
    """A network, its images and values that several rows need."""

    def __init__(self, name: str, data: Path, seed: int) -> None:
        seed_everything(seed)
        self.name, self.seed = name, seed
        settings = ModelSettings()
        if name != "digits":
            settings = ModelSettings(
                f"{SHARED}/models/resnet_cifar.py:{name}", f"{SHARED}/models/{name}-cifar10-jpeg.pth"
            )
        network = load_model(settings)
        splits = load_images("digits" if name == "digits" else str(data), network.preprocessing, seed=seed)
        found: tuple[Network, Splits] = match_classes(network, splits)
        self.network, self.splits = found
        self.calibration: Images = self.splits.train.sample(1000, seed)
        self.judged: Images = self.splits.validation.sample(500, seed)

    def averages(self) -> dict[str, Tensor]:
        """Mean activation of every layer's kernels over the calibration images and positions."""
        found = contributions(self.network, self.calibration)
        return {layer: part.average for layer, part in found.layers.items()}


Rows = list[dict[str, Any]]
Work = Mapping[tuple[str, str], Callable[[Callable[[str], Case], int], Rows]]
"""For each (section, subject), the function that makes its rows from a network's name and the seed."""


def run_sections(description: str | None, results: Path, work: Callable[[], Work], *, timed: bool = True) -> None:
    """Read the options, measure the rows that the results file lacks, write it after every part, and print its tables.

    Rows that compare times are all from one environment. Others (``timed`` false) may come from several; every row names its
    machine and torch version.
    """
    parser = argparse.ArgumentParser(f"python -m benchmarks.{results.stem}", description=description)
    parser.add_argument("--minutes", type=float, default=60, help="minutes after which nothing new is started")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="sections, separated by commas; all by default")
    arguments = parser.parse_args()
    archive = SHARED / "data" / "cifar10-jpeg.tar.xz"
    if not archive.is_file():
        raise SystemExit(f"{archive} does not exist. Set SECATEUR_SHARED to the folder with data/ and models/.")
    environment = describe_environment().to_json()
    sections: dict[str, Any] = {}
    if results.exists():
        found = json.loads(results.read_text())
        if (timed and found["environment"] != environment) or found["seed"] != arguments.seed:
            raise SystemExit(f"{results} holds rows of another environment or seed. Move it to measure again.")
        sections = found["sections"]
    end = time.monotonic() + 60 * arguments.minutes
    chosen = arguments.only.split(",") if arguments.only else None
    cases: dict[str, Case] = {}
    with tempfile.TemporaryDirectory() as folder:

        def case(name: str) -> Case:
            if name != "digits" and not any(Path(folder).iterdir()):
                with tarfile.open(archive, "r:xz") as file:
                    file.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
            if name not in cases:
                cases[name] = Case(name, Path(folder), arguments.seed)
            return cases[name]

        for (section, about), run in work().items():
            if about in sections.get(section, {}) or (chosen and section not in chosen) or time.monotonic() > end:
                continue
            start = time.perf_counter()
            rows = run(case, arguments.seed)
            if not timed:
                machine = environment["gpu"] or environment["processor"]
                rows = [{**row, "machine": machine, "torch": environment["packages"]["torch"]} for row in rows]
            sections.setdefault(section, {})[about] = rows
            print(section, about, f"{time.perf_counter() - start:.0f} s", json.dumps(rows)[:600], flush=True)
            write_json(
                results,
                {
                    "secateur_version": __version__,
                    "environment": environment,
                    "seed": arguments.seed,
                    "sections": sections,
                },
            )
    show(sections)


def show(sections: dict[str, Any]) -> None:
    """A table for each section."""
    for section, parts in sections.items():
        columns: dict[str, None] = collections.OrderedDict()
        for rows in parts.values():
            for row in rows:
                columns.update(dict.fromkeys(name for name, value in row.items() if not isinstance(value, list | dict)))
        table = Table(title=section)
        table.add_column("")
        for name in columns:
            table.add_column(name)
        for about, rows in parts.items():
            for row in rows:
                table.add_row(about, *(_cell(row.get(name)) for name in columns))
        Console(width=180).print(table)


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)
