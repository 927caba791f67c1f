"""action.yml and what is beside it, run from a shell as a runner would run them."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from secateur.cli.commands import app
from secateur.common.errors import ExitCode

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "ci_step.sh"
pytestmark = pytest.mark.skipif(
    not SCRIPT.is_file() or shutil.which("bash") is None, reason="needs the checkout and bash"
)


def action():
    return yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))


class Runner:
    """Runs the ``run:`` steps of the action in order, as GitHub does: expressions put in, outputs read, failures kept."""

    def __init__(self, folder, inputs):
        self.folder, self.steps = folder, {"python": {"python-version": "3.12.0"}, "cache": {"cache-hit": "true"}}
        self.summary, self.log, self.failed = folder / "summary.md", "", False
        self.inputs = {name: one.get("default", "") for name, one in action()["inputs"].items()} | inputs
        assert set(self.inputs) == set(action()["inputs"])
        (folder / "temp").mkdir(exist_ok=True)
        if not (folder / "temp" / "secateur-env").exists():
            (folder / "temp" / "secateur-env").symlink_to(sys.prefix)

    def value(self, name):
        first, *rest = name.split(".")
        if first == "inputs":
            return self.inputs[rest[0]]
        if first == "steps":
            return self.steps[rest[0]].get(rest[2], "")
        return {"github.action_path": str(ROOT), "runner.temp": str(self.folder / "temp")}[name]

    def fill(self, text):
        return re.sub(r"\$\{\{ ([\w.-]+) \}\}", lambda found: self.value(found[1]), text)

    def wanted(self, condition):
        if condition is None:
            return not self.failed
        text = re.fullmatch(r"\$\{\{ (.*) \}\}", condition)[1].replace("&&", "and").replace("always()", "True")
        text = re.sub(r"\b(?:inputs|steps)\.[\w.-]+", lambda found: repr(self.value(found[0])), text)
        return bool(eval(text, {"__builtins__": {}}, {})) and ("always()" in condition or not self.failed)

    def run(self):
        for step in action()["runs"]["steps"]:
            if "run" not in step or not self.wanted(step.get("if")):
                continue
            output = self.folder / "output"
            output.write_text("")
            script = self.folder / "step.sh"
            script.write_text(self.fill(step["run"]))
            environment = {name: self.fill(text) for name, text in step.get("env", {}).items()}
            done = subprocess.run(
                ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", script],
                cwd=self.folder,
                env={
                    **os.environ,
                    **environment,
                    "GITHUB_OUTPUT": str(output),
                    "GITHUB_STEP_SUMMARY": str(self.summary),
                },
                capture_output=True,
                text=True,
            )
            self.log += done.stdout + done.stderr
            if "id" in step:
                lines = output.read_text().splitlines()
                self.steps[step["id"]] = dict(line.split("=", 1) for line in lines)
            self.code = done.returncode
            self.failed |= done.returncode != 0
        return self


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run that passes; what follows goes on from it."""
    folder = tmp_path_factory.mktemp("workspace")
    return Runner(
        folder, {"args": "--epochs 0 --calibration 64 --repair none --macs 0.9 --batches 1 --quiet", "out": "a run"}
    ).run()


@pytest.mark.slow
def test_a_run_that_passes_shows_its_report(first):
    assert first.code == 0, first.log
    outputs = first.steps["run"]
    assert outputs == {"exit-code": "0", "report": "a run/report.json", "model": "a run/model.onnx"}
    assert first.summary.read_text() == (first.folder / "a run" / "report.md").read_text()
    assert (first.folder / outputs["model"]).is_file()
    assert ElementTree.parse(first.folder / "a run" / "junit.xml").getroot()[0].get("failures") == "0"
    uploaded = action()["runs"]["steps"][-1]["with"]["path"]
    for name in ("model.onnx", "report.", "junit.xml", "model-card.md", "benchmark-"):
        assert name in uploaded


@pytest.mark.slow
def test_a_gate_that_fails_fails_the_step_after_the_summary(first):
    """The first run is the release; every gate against it is judged, and an impossible speedup fails."""
    first.summary.unlink()
    shutil.copy(first.folder / "a run" / "report.json", first.folder / "release.json")
    arguments = "--epochs 0 --calibration 64 --repair none --macs 0.9 --quiet --resume --require-speedup 1000"
    again = Runner(first.folder, {"args": arguments, "out": "a run", "baseline": "release.json"}).run()
    assert again.code == ExitCode.GATE_FAILED, again.log
    assert again.steps["run"]["exit-code"] == "1"
    assert "Against the last release" in again.summary.read_text()
    report = json.loads((first.folder / "a run" / "report.json").read_text())
    verdicts = {gate["name"]: gate["verdict"] for gate in report["gates"]}
    assert verdicts["speedup"] == "fail"
    assert verdicts["release size"] == verdicts["release macs"] == verdicts["release accuracy"] == "pass"
    assert verdicts["release latency"] in ("pass", "fail")
    assert report["release"]["drop"] == pytest.approx(
        {"points": 0, "low": -300 / 360, "high": 300 / 360, "images": 360, "paired": 1}
    )
    junit = ElementTree.parse(first.folder / "a run" / "junit.xml").getroot()[0]
    assert int(junit.get("failures")) >= 1


@pytest.mark.slow
def test_a_release_from_another_machine_is_refused_and_an_old_report_is_not_shown(first):
    report = json.loads((first.folder / "a run" / "report.json").read_text())
    report["environment"]["cores"] += 1
    (first.folder / "elsewhere.json").write_text(json.dumps(report))
    first.summary.write_text("")
    refused = Runner(first.folder, {"args": "--quiet", "out": "a run", "baseline": "elsewhere.json"}).run()
    assert refused.code == ExitCode.BAD_INPUT
    assert "another machine" in refused.log
    assert refused.steps["run"] == {"exit-code": "3"}
    assert "exit code 3" in refused.summary.read_text()
    assert "| MACs |" not in refused.summary.read_text()


def stub(folder, body):
    """An environment whose ``secateur`` is a shell script, and whose python is this one."""
    (folder / "env" / "bin").mkdir(parents=True)
    program = folder / "env" / "bin" / "secateur"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    (folder / "env" / "bin" / "python").symlink_to(sys.executable)
    return {**os.environ, "SECATEUR_ENV": str(folder / "env"), "GITHUB_OUTPUT": str(folder / "output")}


@pytest.mark.parametrize("code", list(ExitCode))
def test_every_exit_code_is_kept(tmp_path, code):
    environment = stub(tmp_path, f"exit {int(code)}") | {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary")}
    done = subprocess.run(["bash", SCRIPT, "run"], cwd=tmp_path, env=environment)
    assert done.returncode == code
    assert (tmp_path / "output").read_text() == f"exit-code={int(code)}\n"
    assert f"exit code {int(code)}" in (tmp_path / "summary").read_text()


def test_hostile_inputs_stay_single_words(tmp_path):
    environment = stub(tmp_path, 'for word in "$@"; do printf "%s\\0" "$word"; done >words') | {
        "SECATEUR_MODEL": "$(touch owned);a b.py:net",
        "SECATEUR_DATA": "`touch owned` *",
        "SECATEUR_ARGS": "--keep-classes 'a b,c' --macs 0.5 \"$(touch owned)\"",
    }
    done = subprocess.run(["bash", SCRIPT, "run"], cwd=tmp_path, env=environment)
    assert done.returncode == 0
    assert not (tmp_path / "owned").exists()
    words = (tmp_path / "words").read_text().split("\0")[:-1]
    assert words == [
        "prune-and-export", "--out", "secateur-run", "--model", "$(touch owned);a b.py:net", "--data", "`touch owned` *",
        "--keep-classes", "a b,c", "--macs", "0.5", "$(touch owned)",
    ]  # fmt: skip


def test_arguments_that_no_shell_would_read_are_usage_errors(tmp_path):
    environment = stub(tmp_path, "exit 0") | {"SECATEUR_ARGS": "--macs 'open"}
    done = subprocess.run(["bash", SCRIPT, "run"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == ExitCode.USAGE
    assert "not quoted" in done.stderr


def test_the_key_follows_the_lock_and_the_code(tmp_path):
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    environment = {
        **os.environ,
        "SECATEUR_ENV": "unused",
        "SECATEUR_PYTHON": "3.12.1",
        "GITHUB_OUTPUT": str(tmp_path / "out"),
    }

    def key():
        (tmp_path / "out").write_text("")
        subprocess.run(["bash", tmp_path / "scripts" / "ci_step.sh", "key"], env=environment, check=True)
        return re.fullmatch(r"key=(secateur-\S+)\n", (tmp_path / "out").read_text())[1]

    (tmp_path / "requirements.lock").write_text("a==1")
    (tmp_path / "cli.py").write_text("1")
    first = key()
    assert hashlib.sha256(b"a==1").hexdigest()[:16] in first
    assert "py3.12.1" in first
    assert key() == first
    (tmp_path / "cli.py").write_text("2")
    second = key()
    (tmp_path / "requirements.lock").write_text("a==2")
    assert len({first, second, key()}) == 3


def test_installation_takes_the_lock_with_its_hashes_and_nothing_else(tmp_path):
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python3"
    python.write_text(
        f'#!/bin/sh\necho "$@" >>{tmp_path}/log\n[ "$2" != venv ] || {{ mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; }}\n'
    )
    python.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SECATEUR_ENV": str(tmp_path / "env"),
    }
    subprocess.run(["bash", SCRIPT, "install"], env=environment, check=True)
    venv, lock, ours = (tmp_path / "log").read_text().splitlines()
    assert venv == f"-m venv {tmp_path / 'env'}"
    assert "--require-hashes --no-deps" in lock
    assert lock.endswith(f"-r {ROOT}/requirements.lock")
    assert ours.endswith(f"--no-deps --no-build-isolation {ROOT}")


def test_expressions_name_inputs_and_steps_that_exist():
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    made = action()
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(made["inputs"])
    ids = [step.get("id") for step in made["runs"]["steps"]]
    for step, output in re.findall(r"steps\.([\w-]+)\.outputs\.([\w-]+)", text):
        assert step in ids
        assert output in SCRIPT.read_text() or step in ("python", "cache")
    for step in made["runs"]["steps"]:
        assert "uses" in step or step["shell"] == "bash"
        assert "${{ inputs." not in step.get("run", "")  # an input inside a script would be run
        assert step.get("uses", "actions/").startswith("actions/")


def options_of(text):
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))


def test_examples_name_inputs_and_options_that_exist():
    shown = CliRunner().invoke(app, ["prune-and-export", "--help"], env={"COLUMNS": "200"}).output
    for name in ("github", "gitlab"):
        text = (ROOT / "examples" / "ci" / f"{name}.yml").read_text(encoding="utf-8")
        yaml.safe_load(text)
        assert options_of(text.replace("--quiet PATH_OR_URL", "")) <= options_of(shown)
    workflow = yaml.safe_load((ROOT / "examples" / "ci" / "github.yml").read_text(encoding="utf-8"))
    step = workflow["jobs"]["slim"]["steps"][-1]
    assert set(step["with"]) <= set(action()["inputs"])
    job = yaml.safe_load((ROOT / "examples" / "ci" / "gitlab.yml").read_text(encoding="utf-8"))["slim"]
    assert job["artifacts"]["reports"]["junit"] == "slim/junit.xml"
    assert job["artifacts"]["when"] == "always"


def test_the_container_copies_what_is_there_and_all_of_the_package():
    text = (ROOT / "Containerfile").read_text(encoding="utf-8")
    copied = [word for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for word in line.split()]
    for name in copied:
        assert list(ROOT.glob(name)), name
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {name.split(".")[1] for name in setup["tool"]["setuptools"]["packages"] if "." in name}
    assert packages <= set(copied)
    assert {"*.py", "py.typed", "pyproject.toml", "requirements.lock", setup["project"]["readme"]} <= set(copied)
    assert "USER secateur" in text
    assert text.rstrip().endswith('ENTRYPOINT ["secateur"]')
