"""The networks that people bring, opened, cut and exported: python -m benchmarks.zoo [--groups-only] [--only NAME,…] [--all]

Every classification family of torchvision, sixty networks of timm, YOLO's classifiers and OSNet where their packages are
installed; all with seeded random weights, ten classes, and 64 pixels or the smallest size that they take. For each, what share
of its MACs secateur can cut and why not the rest (`benchmarks/zoo/opened.py` defines the shares), then
`prune-and-export --macs 0.7 --rank-by magnitude --allocation uniform --epochs 0 --no-evidence` on a few random pictures: its
exit code and whether the ONNX file answers as the cut module does.

Every network has a process of its own with a time limit. Rows are kept in the results file and not made again, unless with
`--again`. `zoo-before.json` holds the opened shares of the code before "every network that people bring" was worked on; what
worked then may never be opened less.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

import secateur
from benchmarks.zoo.networks import CLASSES, all_names, main_names
from benchmarks.zoo.one import factory_file
from secateur.common.environment import code_sha256, describe_environment
from secateur.common.files import write_json

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
OPTIONS = (
    "--macs", "0.7", "--rank-by", "magnitude", "--allocation", "uniform", "--epochs", "0", "--no-evidence", "--batches", "1",
    "--threads", "1",
)  # fmt: skip
TRAINING, TEST = 6, 3
"""Pictures of a class."""
SAID = 400
"""Characters of a message that a row keeps."""
Row = dict[str, Any]


def main() -> int:
    arguments = _parse()
    path: Path = arguments.results
    header = {
        "secateur_version": secateur.__version__,
        "environment": describe_environment().to_json(),
        "networks_of": versions(),
        "seed": arguments.seed,
        "options": list(OPTIONS),
    }
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if found and (found["seed"], found["options"]) != (arguments.seed, list(OPTIONS)):
        raise SystemExit(f"{path} holds rows of another seed or of other options. Move it away to measure anew.")
    rows: dict[str, Row] = found.get("rows", {})
    names = arguments.only.split(",") if arguments.only else all_names() if arguments.all else main_names()
    end = time.monotonic() + 60 * arguments.minutes
    for name in names:
        if (done(rows.get(name), arguments.groups_only) and not arguments.again) or time.monotonic() > end:
            continue
        rows[name] = try_network(name, arguments.seed, arguments.limit, arguments.groups_only)
        if not arguments.groups_only:
            rows[name] |= opened_before(name)
        print(name, json.dumps(rows[name])[:SAID], flush=True)
        write_json(path, {**header, "commit": _commit(), "rows": rows})
    return int(any(row.get("exit_code") == 5 for row in rows.values()))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.zoo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="names as in the table (timm:resnet18), with commas")
    parser.add_argument("--all", action="store_true", help="all builders of torchvision and more of timm")
    parser.add_argument("--groups-only", action="store_true", help="nothing is cut: opened shares and times only")
    parser.add_argument("--again", action="store_true", help="make rows again that are there")
    parser.add_argument("--limit", type=float, default=300, help="seconds for a network")
    parser.add_argument("--minutes", type=float, default=600, help="start nothing new after this long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS / "zoo.json")
    return parser.parse_args()


def versions() -> dict[str, str]:
    """The packages that build the networks."""
    found = {}
    for package in ("torchvision", "timm", "ultralytics", "torchreid"):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def done(row: Row | None, groups_only: bool) -> bool:
    """Whether a row holds all that is asked for."""
    return row is not None and "skipped" not in row and (groups_only or "exit_code" in row or "stopped" in row)


def opened_before(name: str) -> Row:
    """What was open of a network in the code before."""
    kept = json.loads((RESULTS / "zoo-before.json").read_text(encoding="utf-8"))["rows"].get(name, {})
    return {f"{key}_before": kept[key] for key in ("opened", "lowest") if key in kept}


def try_network(name: str, seed: int, limit_s: float, groups_only: bool = False) -> Row:
    """What one network gives; never raises for what the network or secateur does."""
    start = time.monotonic()
    row: Row = {"code": code_sha256()[:12], "processor": describe_environment().processor}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        try:
            row |= _in_process(
                ["benchmarks.zoo.one", "groups", name, str(seed), place], folder / "groups.json", limit_s
            )
            if "pixels" in row and not groups_only:
                pictures(folder / "pictures", row["pixels"], seed, row.get("classes", CLASSES) == CLASSES)
                row |= _prune(name, seed, row["pixels"], folder, limit_s - (time.monotonic() - start))
        except subprocess.TimeoutExpired:
            row["stopped"] = f"not done in {limit_s:.0f} s"
    row["seconds"] = round(time.monotonic() - start, 1)
    return row


def _prune(name: str, seed: int, pixels: int, folder: Path, limit_s: float) -> Row:
    start = time.monotonic()
    run = folder / "run"
    model = factory_file(folder, name, pixels, seed)
    ended = _run(
        [
            "secateur",
            "prune-and-export",
            "--model",
            model,
            "--data",
            str(folder / "pictures"),
            "--out",
            str(run),
            *OPTIONS,
        ],
        limit_s,
    )
    row: Row = {"exit_code": ended.returncode}
    if ended.returncode:
        row["said"] = " ".join(ended.stderr.split())[-SAID:]
    if (run / "model.onnx").is_file():
        left_s = limit_s - (time.monotonic() - start)
        row |= _in_process(["benchmarks.zoo.one", "parity", str(run), str(folder)], folder / "parity.json", left_s)
        report = json.loads((run / "report.json").read_text(encoding="utf-8"))
        row["macs_left"] = report["pruned"]["macs"] / report["baseline"]["macs"]
    row["prune_s"] = round(time.monotonic() - start, 1)
    return row


def _in_process(module: list[str], result: Path, limit_s: float) -> Row:
    ended = _run(module, limit_s)
    if result.is_file():
        found: Row = json.loads(result.read_text(encoding="utf-8"))
        return found
    said = " ".join(ended.stderr.split())[-SAID:]
    return {"skipped" if "ModuleNotFoundError" in said else "failed": said}


def _run(module: list[str], limit_s: float) -> subprocess.CompletedProcess[str]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return subprocess.run(
        [sys.executable, "-m", *module],
        cwd=ROOT,
        env={**os.environ, **threads},
        capture_output=True,
        text=True,
        timeout=max(1.0, limit_s),
    )


def pictures(folder: Path, pixels: int, seed: int, labelled: bool = True) -> None:
    """A few pictures of noise for each class, each class around a colour of its own; one folder of pictures if not labelled."""
    generator = numpy.random.default_rng(seed)
    for part, count in (("train", TRAINING), ("test", TEST)):
        for label in range(CLASSES):
            place = folder / part / f"class{label}" if labelled else folder
            place.mkdir(parents=True, exist_ok=True)
            colour = numpy.random.default_rng(label).integers(60, 196, 3)
            for index in range(count):
                noisy = colour + generator.normal(0, 40, (pixels, pixels, 3))
                Image.fromarray(noisy.clip(0, 255).astype(numpy.uint8)).save(place / f"{part}-{label}-{index}.png")


def _commit() -> str:
    """The commit of the code that is tried, with a mark where it has changes."""
    home = Path(secateur.__file__).resolve().parent
    said = subprocess.run(
        ["git", "-C", str(home), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        capture_output=True,
        text=True,
    )
    return said.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
