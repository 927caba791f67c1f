"""kill -9 at any moment, then --resume: the same files, byte for byte; and what a ranker keeps for that."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from secateur import prune_and_export
from secateur.common.progress import Observer
from secateur.explain import registry
from secateur.explain.baselines import score_magnitude
from secateur.explain.scores import LayerScores
from secateur.pipeline.recipe.recipe import Recipe
from secateur.pipeline.single_commands import explain_into

SCRIPT = Path(sys.executable).with_name("secateur")
NAMES = (
    "plan.json", "recipe.toml", "sensitivity.json", "scores.safetensors", "model.safetensors", "model.onnx", "baseline.onnx",
)  # fmt: skip
COMMAND = ("prune-and-export", "--no-evidence", "--epochs", "2", "--calibration", "200", "--batches", "1", "--out")


def hashes(folder):
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in NAMES}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    start = time.monotonic()
    subprocess.run([SCRIPT, *COMMAND, folder], check=True, capture_output=True)
    return hashes(folder), time.monotonic() - start


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs kill -9")
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))])
def test_a_killed_run_goes_on_to_the_same_files(seed, undisturbed, tmp_path):
    wanted, seconds = undisturbed
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [SCRIPT, *COMMAND, folder], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    time.sleep(random.Random(seed).uniform(0.35, 0.95) * seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run([SCRIPT, *COMMAND, folder, "--resume"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert hashes(folder) == wanted
    assert not [*folder.rglob("*.part")]


@pytest.mark.slow
def test_a_second_run_into_the_same_folder_is_refused(tmp_path):
    folder = tmp_path / "run"
    first = subprocess.Popen([SCRIPT, *COMMAND, folder], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (folder / ".secateur" / "lock").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        second = subprocess.run([SCRIPT, *COMMAND, folder], capture_output=True, text=True)
        assert first.poll() is None, "the first run was over before the second began"
        assert second.returncode == 2
        assert "Another run" in second.stderr
    finally:
        first.kill()
        first.wait()


class Stopped(BaseException):
    """The user stops a run."""


@pytest.fixture
def kept():
    """A ranker that is stopped at its first call; gives what each call found in its scratch folder, and the folders."""
    found, folders = [], []

    def score(task):
        folders.append(task.scratch)
        found.append(sorted(path.name for path in task.scratch.iterdir()))
        (task.scratch / "half").write_text("half of it")
        if len(found) == 1:
            raise Stopped
        return LayerScores(score_magnitude(task).layers)

    with registry.temporary():
        registry.register("long", summary="s", needs="weights", unit="u", source="me")(score)
        yield found, folders


@pytest.fixture
def recipe():
    recipe = Recipe().override(
        page=False, epochs=0, calibration=20, rank_by="long", allocation="uniform", repair="none"
    )
    return replace(recipe, measurement=replace(recipe.measurement, batches=(1,)))


@pytest.mark.parametrize(
    ("resume", "seed", "wanted"), [(True, 0, ["half"]), (False, 0, []), (True, 1, [])],
    ids=["resumed", "begun anew", "of other inputs"],
)  # fmt: skip
def test_a_ranker_that_was_stopped_finds_what_it_kept(kept, recipe, tmp_path, resume, seed, wanted):
    found, folders = kept
    with pytest.raises(Stopped):
        prune_and_export(recipe, tmp_path / "run")
    assert folders[0].is_dir()
    prune_and_export(replace(recipe, seed=seed), tmp_path / "run", resume=resume)
    assert found == [[], wanted]
    assert not any(folder.exists() for folder in folders)


@pytest.mark.parametrize(("seed", "wanted"), [(0, ["half"]), (1, [])], ids=["the same", "other inputs"])
def test_an_explanation_that_was_stopped_goes_on(kept, recipe, tmp_path, seed, wanted):
    found, folders = kept
    with pytest.raises(Stopped):
        explain_into(recipe, tmp_path / "run", Observer())
    explain_into(replace(recipe, seed=seed), tmp_path / "run", Observer())
    assert found == [[], wanted]
    assert not any(folder.exists() for folder in folders)


def test_rounds_do_not_share_what_they_keep(kept, recipe, tmp_path):
    found, folders = kept
    with pytest.raises(Stopped):
        prune_and_export(recipe.override(rounds=2), tmp_path / "run")
    prune_and_export(recipe.override(rounds=2), tmp_path / "run", resume=True)
    assert found == [[], ["half"], []]
    assert folders[0] == folders[1] != folders[2]
