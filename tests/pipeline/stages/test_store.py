"""Stages are there whole or not at all, whenever the process is killed."""

import shutil

import pytest

from secateur.common.files import read_json, write_json
from secateur.pipeline.stages.store import Stage, StageStore


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs."""


@pytest.fixture
def stage(tmp_path):
    """Run the one stage of a run; returns its value and whether it was worked on now."""

    def run(resume):
        worked = []

        def work(place):
            worked.append(place.folder)
            write_json(place.folder / "value.json", 7)

        stage = Stage("plan", {}, work, lambda folder: read_json(folder / "value.json"))
        value = StageStore(tmp_path / "stages", resume).run(stage)
        return value, bool(worked)

    return run


def test_a_finished_stage_is_taken_up_only_with_resume(stage):
    assert stage(False) == (7, True)
    assert stage(True) == (7, False)
    assert stage(False) == (7, True)


def test_a_stage_that_was_half_removed_when_the_run_was_killed_is_worked_on_again(stage, monkeypatch):
    stage(False)

    def remove_one_file_and_die(root, ignore_errors=False):
        (path,) = root.rglob("value.json")
        path.unlink()
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", remove_one_file_and_die)
        with pytest.raises(Killed):
            stage(False)
    assert stage(True) == (7, True)
