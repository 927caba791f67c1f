"""Whatever goes wrong ends with an exit code and one readable message, and nothing is written over."""

import os
import pickle
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import typer.main
from torch import nn

from secateur.cli.app import PANELS
from secateur.cli.commands import app
from secateur.common.errors import ExitCode
from secateur.network.digits import WEIGHTS
from shell import secateur

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(sys.executable).with_name("secateur")


def bad_usage():
    yield "macs above one", ["--macs", "1.4"], "between 0 and 1"
    yield "macs not a number", ["--macs", "nan"], "between 0 and 1"
    yield "macs zero", ["--macs", "0"], "between 0 and 1"
    yield "unknown ranker", ["--rank-by", "astrology"], "magnitude"
    yield "two budgets", ["--macs", "0.5", "--params", "0.5"], "give one"
    yield "a budget and a drop", ["--size", "0.5", "--max-drop", "1"], "give one"
    yield "size above one", ["--size", "50"], "between 0 and 1"
    yield "no drop at all", ["--max-drop", "0"], "above 0"
    yield "a negative drop", ["--max-drop", "-1"], "above 0"
    yield "more drop than there is", ["--max-drop", "101"], "up to 100"
    yield "no rounds", ["--rounds", "0"], "rounds"
    yield "round to more than any width", ["--round-to", "1000"], "as wide as every layer"
    yield "unknown repair", ["--repair", "glue"], "none, mean, bn"
    yield "unknown option", ["--maks", "0.5"], "maks"
    yield "negative epochs", ["--epochs", "-1"], "epochs"
    yield "mean without std", ["--mean", "0.5"], "go together"
    yield "round to a word", ["--round-to", "much"], "round-to"
    yield "contradicting providers", ["--provider", "cpu", "--require-provider", "cuda"], "contradicts"
    yield "speedup below zero", ["--require-speedup", "-2"], "above 0"


@pytest.mark.parametrize(("what", "options", "words"), list(bad_usage()), ids=lambda value: str(value)[:24])
def test_wrong_usage_ends_with_2(what, options, words, tmp_path):
    code, _, stderr = secateur("prune-and-export", "--out", tmp_path / "out", *options)
    assert code == ExitCode.USAGE, what
    assert words in stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "out" / "report.json").exists()


def bad_weights(folder):
    state = nn.Linear(2, 2).state_dict()
    whole = folder / "whole.pt"
    torch.save({"conv.weight": torch.randn(64, 64)}, whole)
    for name, content in (
        ("empty.pt", b""),
        ("truncated.pt", whole.read_bytes()[:3000]),
        ("pointer.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        ("text.pt", b"these are no weights"),
        ("cut.safetensors", WEIGHTS.read_bytes()[:5000]),
    ):
        (folder / name).write_bytes(content)
    torch.save(nn.Linear(2, 2), folder / "module.pt")
    (folder / "pickle.pt").write_bytes(pickle.dumps({"a": state}))
    poisoned = torch.load(whole, weights_only=True)
    poisoned["conv.weight"][0, 0] = float("nan")
    return ("empty.pt", "truncated.pt", "pointer.pt", "text.pt", "cut.safetensors", "module.pt")


def test_bad_weights_end_with_3_and_are_named(tmp_path):
    for name in bad_weights(tmp_path):
        code, _, stderr = secateur("prune-and-export", "--weights", tmp_path / name, "--out", tmp_path / "out")
        assert code == ExitCode.BAD_INPUT, name
        assert name in stderr
        assert stderr.count("\n") == 1, stderr
    assert not (tmp_path / "out" / "report.json").exists()


def test_nan_weights_end_with_3(tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(WEIGHTS)
    tensors["block1.conv1.weight"][0, 0, 0, 0] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors")
    code, _, stderr = secateur("explain", "--weights", tmp_path / "nan.safetensors", "--out", tmp_path / "out")
    assert code == ExitCode.BAD_INPUT
    assert "block1.conv1.weight" in stderr


def bad_inputs(data, model):
    file = model.rpartition(":")[0]
    yield "unknown model", ["--model", "resnet81"], "resnet18"
    yield "missing factory file", ["--model", "absent.py:build", "--data", data], "absent.py"
    yield "missing factory function", ["--model", f"{file}:bild", "--data", data], "build"
    yield "wrong class count", ["--model", f"{file}:three", "--data", data], "3 classes"
    yield "no data", ["--model", model], "--data"
    yield "absent data", ["--model", model, "--data", data / "absent"], "absent"
    yield "absent recipe", ["--recipe", data / "no.toml"], "no.toml"


def test_bad_model_or_data_ends_with_3(tmp_path, model, data):
    for what, options, words in bad_inputs(data, model):
        code, _, stderr = secateur("prune-and-export", "--out", tmp_path / "out", *options)
        assert code == ExitCode.BAD_INPUT, (what, stderr)
        assert words in stderr, (what, stderr)
        assert "Traceback" not in stderr


def test_a_corrupt_image_is_named_before_any_work(tmp_path, model, data):
    victim = data / "test" / "dog" / "2.png"
    victim.write_bytes(victim.read_bytes()[:45])
    code, stdout, stderr = secateur("prune-and-export", "--model", model, "--data", data, "--out", tmp_path / "out")
    assert code == ExitCode.BAD_INPUT
    assert str(victim) in stderr
    assert "explain" not in stdout


def test_an_empty_class_folder_is_named(tmp_path, model, data):
    for image in (data / "train" / "cat").iterdir():
        image.unlink()
    code, _, stderr = secateur("prune-and-export", "--model", model, "--data", data, "--out", tmp_path / "out")
    assert code == ExitCode.BAD_INPUT
    assert "cat" in stderr


def test_a_typo_in_a_recipe_is_bad_input_with_the_right_word(tmp_path):
    (tmp_path / "r.toml").write_text("[budget]\nmacz = 0.5\n")
    code, _, stderr = secateur("prune-and-export", "--recipe", tmp_path / "r.toml", "--out", tmp_path / "out")
    assert code == ExitCode.BAD_INPUT
    assert "'macs'" in stderr
    assert "r.toml" in stderr


@pytest.mark.parametrize("command", ["explain", "prune-and-export"])
def test_an_unknown_ranker_in_a_recipe_is_bad_input(tmp_path, command):
    (tmp_path / "r.toml").write_text('[ranking]\nrank_by = "astrology"\n')
    code, _, stderr = secateur(command, "--recipe", tmp_path / "r.toml", "--out", tmp_path / "out")
    assert code == ExitCode.BAD_INPUT
    assert "r.toml" in stderr
    assert "'astrology'" in stderr
    assert "magnitude" in stderr


def test_an_alignment_too_wide_is_refused_before_any_work(tmp_path):
    code, stdout, _ = secateur("prune-and-export", "--round-to", "1000", "--out", tmp_path / "out")
    assert code == ExitCode.USAGE
    assert "explain" not in stdout
    assert secateur("explain", "--rank-by", "magnitude", "--out", tmp_path / "out")[0] == 0
    code, stdout, stderr = secateur("plan", "--round-to", "1000", "--out", tmp_path / "out")
    assert code == ExitCode.USAGE
    assert "as wide as every layer" in stderr
    assert not (tmp_path / "out" / "plan.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("options", [["--require-provider", "cuda"], ["--provider", "tensorrt"], ["--device", "cuda"]])
def test_what_the_machine_lacks_ends_with_4(options, tmp_path):
    code, _, stderr = secateur("prune-and-export", "--out", tmp_path / "out", *options)
    assert code == ExitCode.MACHINE
    assert "doctor" in stderr


def test_a_defect_ends_with_5_and_without_traceback(monkeypatch, tmp_path):
    from secateur.pipeline import prune_and_export as pipeline

    monkeypatch.setattr(pipeline, "prune_and_export", lambda *args, **kwargs: 1 / 0)
    code, _, stderr = secateur("prune-and-export", "--out", tmp_path / "out")
    assert code == ExitCode.DEFECT
    assert "ZeroDivisionError" in stderr
    assert "Traceback" not in stderr


def test_the_version_is_the_packages(tmp_path):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    for command in ([SCRIPT], [sys.executable, "-m", "secateur"]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True, cwd=tmp_path)
        assert done.stdout == f"secateur {version}\n"


def test_commands_are_listed_in_the_order_of_use_under_headings():
    text = secateur("--help")[1]
    listed = [match[1] for match in re.finditer(r"^│ ([a-z][a-z-]+) ", text, re.MULTILINE)]
    assert listed == list(PANELS)
    assert {name for name, _ in command_parameters()} == set(PANELS), "every command has a heading"
    for heading in PANELS.values():
        assert f"─ {heading} ─" in text


def command_parameters():
    group = typer.main.get_command(app)
    return [(name, command.params) for name, command in group.commands.items()]


def test_every_option_of_the_main_job_stands_under_a_heading_the_everyday_ones_first():
    parameters = dict(command_parameters())["prune-and-export"]
    headings = list(dict.fromkeys(one.rich_help_panel for one in parameters if one.name != "help"))
    assert headings == [
        "Model and data", "Budget", "Ranking", "Repair and recovery", "Measurement", "Gates", "Output",
    ]  # fmt: skip
    assert [one.name for one in parameters[:3]] == ["model", "weights", "data"]


@pytest.mark.parametrize("name", [name for name, _ in command_parameters()])
def test_every_option_says_what_it_is_for(name):
    for one in dict(command_parameters())[name]:
        assert one.name == "help" or len(one.help or "") > 5, one.name


def test_the_shell_completes_commands_and_options():
    environment = {**os.environ, "_SECATEUR_COMPLETE": "complete_bash", "COMP_WORDS": "secateur pr", "COMP_CWORD": "1"}
    done = subprocess.run([SCRIPT], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["prune-and-export", "prune"]
    environment |= {"COMP_WORDS": "secateur plan --mac", "COMP_CWORD": "2"}
    assert subprocess.run([SCRIPT], capture_output=True, text=True, env=environment).stdout.split() == ["--macs"]
