"""kill -9 at any moment, then --resume: the same files, byte for byte."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(sys.executable).with_name("secateur")
NAMES = (
    "plan.json", "recipe.toml", "sensitivity.json", "scores.safetensors", "model.safetensors", "model.onnx", "baseline.onnx",
)  # fmt: skip
COMMAND = ("prune-and-export", "--epochs", "2", "--calibration", "300", "--out")


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
@pytest.mark.parametrize("seed", range(3))
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
