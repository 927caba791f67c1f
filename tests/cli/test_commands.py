"""The command line as a shell sees it: exit codes, one readable message, nothing written over."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from secateur.cli.commands import app
from secateur.common.errors import ExitCode
from secateur.network.digits import WEIGHTS

SCRIPT = Path(sys.executable).with_name("secateur")
NETWORK = """
import torch
from torch import nn
INPUT_SHAPE = (3, 8, 8)
NORMALISATION = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
def build(classes=2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
                         nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))
def three():
    return build(3)
"""


def secateur(*arguments):
    """Run in this process: (exit code, stdout, stderr)."""
    done = CliRunner().invoke(app, list(map(str, arguments)))
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "network.py"
    path.write_text(NETWORK)
    return f"{path}:build"


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "images"
    for split, count in (("train", 8), ("test", 4)):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (8, 8), (40 * index % 256, 200 * label, 30)).save(root / split / name / f"{index}.png")
    return root


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
    yield "mean without std", ["--mean", "0.5"], "belong together"
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


def test_the_steps_follow_each_other(tmp_path, model, data):
    out = tmp_path / "out"
    code, _, stderr = secateur("plan", "--out", out)
    assert code == ExitCode.BAD_INPUT
    assert "recipe.toml" in stderr or "explain" in stderr
    explained = secateur("explain", "--model", model, "--data", data, "--calibration", "8", "--out", out)
    assert explained[0] == 0, explained[2]
    assert "scores.safetensors" in explained[1]
    assert "no plan" in (out / "evidence.html").read_text()
    planned = secateur("plan", "--out", out, "--macs", "0.6")
    assert planned[0] == 0, planned[2]
    assert json.loads((out / "plan.json").read_text())["after"]["macs"] > 0
    told = secateur("plan", "--out", out, "--explain", "0")
    assert told[0] == 0, told[2]
    assert told[1].count("stays") + told[1].count("goes") == 8
    assert secateur("plan", "--out", out, "--explain", "nosuch")[0] == ExitCode.BAD_INPUT
    edited = json.loads((out / "plan.json").read_text())
    edited["groups"][0]["removed"] = [1, 2, 6]
    (out / "plan.json").write_text(json.dumps(edited))
    pruned = secateur("prune", "--out", out, "--epochs", "0")
    assert pruned[0] == 0, pruned[2]
    assert json.loads((out / "plan.json").read_text())["cut"]["0"]["out_removed"] == [1, 2, 6]
    exported = secateur("export", "--out", out)
    assert exported[0] == 0, exported[2]
    bench = secateur(
        "bench", out / "baseline.onnx", out / "model.onnx", "--data", data, "--batches", "2", "--provider", "cpu"
    )
    assert bench[0] == 0, bench[2]
    assert "latency, batch 2" in bench[1]
    assert "top-1 accuracy" in bench[1]
    alone = secateur("export", "--model", model, "--out", tmp_path / "alone")
    assert alone[0] == 0, alone[2]


def test_a_model_of_another_plan_is_not_exported(tmp_path, model, data):
    out = tmp_path / "out"
    for command in (
        ("explain", "--model", model, "--data", data, "--rank-by", "magnitude"),
        ("plan", "--macs", "0.6"),
        ("prune", "--epochs", "0"),
        ("plan", "--macs", "0.8"),
    ):
        assert secateur(*command, "--out", out)[0] == 0
    code, _, stderr = secateur("export", "--out", out)
    assert code == ExitCode.BAD_INPUT
    assert "Prune again" in stderr


def test_main_job_from_a_shell_without_a_terminal(tmp_path, model, data):
    done = subprocess.run(
        [
            SCRIPT,
            "prune-and-export",
            "--model",
            model,
            "--data",
            data,
            "--macs",
            "0.6",
            "--epochs",
            "1",
            "--batches",
            "1",
            "--out",
            "run",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "TERM": "dumb"},
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b[" not in done.stdout
    for stage in ("load", "explain", "plan", "repair", "recover", "evidence", "export", "accuracy", "latency"):
        assert re.search(rf"✓ {stage}\s+\d+\.\d s", done.stdout), stage
    assert "run/report.html" in done.stdout
    assert "run/evidence.html" in done.stdout
    assert (tmp_path / "run" / "evidence.html").is_file()
    assert (tmp_path / "run" / "report.html").is_file()
    again = subprocess.run([SCRIPT, "report", "--out", "run"], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0
    quiet = subprocess.run(
        [SCRIPT, "prune-and-export", "--resume", "--recipe", "run/recipe.toml", "--out", "run", "--quiet"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert quiet.returncode == 0, quiet.stderr
    assert "✓" not in quiet.stdout
    assert "MACs" in quiet.stdout


def test_tables_of_rankers_and_doctor():
    code, stdout, _ = secateur("rankers")
    assert code == 0
    for name in ("gap", "random", "magnitude", "bn-scale", "fpgm", "taylor", "lamp", "shapley"):
        assert name in stdout
    code, stdout, _ = secateur("doctor")
    assert code == 0
    assert "provider cuda" in stdout


def test_bench_needs_to_know_the_normalisation(tmp_path, data):
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Flatten", ["p"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 3))],
    )
    path = tmp_path / "foreign.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    code, _, stderr = secateur("bench", path, path, "--data", data)
    assert code == ExitCode.BAD_INPUT
    assert "--mean" in stderr
    code, _, stderr = secateur("bench", path, path, "--batches", "1")
    assert code == 0, stderr


def test_another_model_in_the_same_folder_is_not_exported_as_the_pruned_one(tmp_path, model, data):
    out = tmp_path / "out"
    for command in (
        ("explain", "--model", model, "--data", data, "--rank-by", "magnitude"),
        ("plan", "--macs", "0.6", "--allocation", "uniform"),
        ("prune", "--epochs", "0"),
    ):
        assert secateur(*command, "--out", out)[0] == 0
    other = tmp_path / "other.py"
    other.write_text(Path(model.rpartition(":")[0]).read_text())
    assert secateur("explain", "--model", f"{other}:build", "--data", data, "--out", out)[0] == 0
    code, _, stderr = secateur("export", "--out", out)
    assert code == ExitCode.BAD_INPUT
    assert "other.py" in stderr


def test_explain_a_picture_writes_its_evidence(model, data, tmp_path):
    picture, out = data / "test" / "cat" / "1.png", tmp_path / "out"
    twin = tmp_path / "1.png"
    twin.write_bytes(picture.read_bytes())
    code, stdout, stderr = secateur(
        "explain", picture, twin, "--model", model, "--data", data, "--out", out, "--top", 2, "--occlude", "0,0,4,4"
    )
    assert code == 0, stderr
    assert {path.name for path in (out / "evidence").iterdir()} == {
        "1.json", "1.png", "1-2.json", "1-2.png", "evidence.html",
    }  # fmt: skip
    tree = json.loads((out / "evidence" / "1.json").read_text())
    assert tree["predicted"] in ("cat", "dog")
    assert len(tree["evidence"]) <= 2
    assert tree["occlusions"][-1]["why"] == "asked for"
    assert f"kernel {tree['evidence'][0]['kernel']}" in stdout
    assert stdout.endswith(f"page: {out / 'evidence' / 'evidence.html'}\n")
    code, _, stderr = secateur("explain", twin, "--model", model, "--out", out, "--layers", "0", "--class", "1")
    assert code == 0, stderr
    assert json.loads((out / "evidence" / "1.json").read_text())["layers"] == ["0"]
    code, _, stderr = secateur("explain", twin, "--model", model, "--data", data, "--out", out, "--baseline", "mean")
    assert code == 0, stderr
    assert json.loads((out / "evidence" / "1.json").read_text())["settings"]["baseline"] == "mean"


@pytest.mark.parametrize(
    ("options", "exit_code", "said"),
    [
        (["--top", "2"], ExitCode.USAGE, "belong to pictures"),
        (["PICTURE", "--rank-by", "gap"], ExitCode.USAGE, "nothing is ranked"),
        (["PICTURE", "--misclassified", "2"], ExitCode.USAGE, "choose images"),
        (["PICTURE", "--evidence-kernels", "0"], ExitCode.USAGE, "evidence_kernels must be"),
        (["PICTURE", "--top", "0"], ExitCode.USAGE, "at least 1"),
        (["PICTURE", "--baseline", "median"], ExitCode.USAGE, "zero or mean"),
        (["PICTURE", "--baseline", "mean"], ExitCode.USAGE, "give --data"),
        (["PICTURE", "--kernel", "0:1:99999999999999999999:0"], ExitCode.USAGE, "that many"),
        (["PICTURE", "--kernel", "0:1"], ExitCode.USAGE, "LAYER:KERNEL:ROW:COLUMN"),
        (["PICTURE", "--kernel", "0:1:2:3", "--class", "1"], ExitCode.USAGE, "not both"),
        (["PICTURE", "--occlude", "1,2,3"], ExitCode.USAGE, "LEFT,TOP,RIGHT,BOTTOM"),
        (["PICTURE", "--occlude", "5,5,9,9"], ExitCode.BAD_INPUT, "9"),
        (["PICTURE", "--class", "cow"], ExitCode.BAD_INPUT, "no class 'cow'"),
        (["PICTURE", "--layers", "nowhere"], ExitCode.BAD_INPUT, "no layer 'nowhere'"),
        (["PICTURE", "--kernel", "3:99:0:0", "--layers", "0"], ExitCode.BAD_INPUT, "kernel must be between 0 and 7"),
        (["missing.png"], ExitCode.BAD_INPUT, "missing.png does not exist"),
    ],
)
def test_explain_a_picture_refuses_what_it_cannot_do(model, data, tmp_path, options, exit_code, said):
    options = [data / "test" / "cat" / "1.png" if option == "PICTURE" else option for option in options]
    code, _, stderr = secateur("explain", *options, "--model", model, "--out", tmp_path / "out")
    assert (code, said in stderr) == (exit_code, True), stderr
    assert not list(tmp_path.glob("out/evidence/*"))


def test_pictures_with_odd_names_and_twins_keep_their_evidence_apart(model, data, tmp_path):
    picture, out = data / "test" / "cat" / "1.png", tmp_path / "out"
    names = ["a.png", "a.bmp", "a-2.png", "x" * 200 + ".png", "a <b> & $c$.png"]
    for name in names:
        Image.open(picture).save(tmp_path / name)
    code, stdout, stderr = secateur("explain", *(tmp_path / name for name in names), "--model", model, "--out", out)
    assert code == 0, stderr
    written = {path.name for path in (out / "evidence").iterdir() if path.suffix == ".json"}
    assert len(written) == len(names)
    assert {json.loads((out / "evidence" / name).read_text())["picture"] for name in written} == set(names)
    assert "one stage" in stdout


def test_the_recipe_of_a_run_names_the_classes(model, data, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f"[model]\nmodel = {json.dumps(model)}\n[data]\ndata = {json.dumps(str(data))}\n")
    picture, out = data / "test" / "cat" / "1.png", tmp_path / "out"
    code, stdout, stderr = secateur(
        "explain", picture, "--recipe", recipe, "--out", out, "--class", "dog", "--baseline", "mean"
    )
    assert code == 0, stderr
    assert "the logit of dog" in stdout


def test_evidence_for_scores_that_are_not_finite_is_refused(data, tmp_path):
    source = tmp_path / "zero.py"
    source.write_text(
        "from torch import nn\nINPUT_SHAPE = (3, 8, 8)\nNORMALISATION = {'mean': (0, 0, 0), 'std': (1, 1, 1)}\n"
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)\n"
        "    def forward(self, x):\n        return self.head(self.conv(x / x.std()).mean((2, 3)))\n"
        "def build():\n    return Net()\n"
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
    code, _, stderr = secateur(
        "explain", tmp_path / "black.png", "--model", f"{source}:build", "--out", tmp_path / "out"
    )
    assert code == ExitCode.BAD_INPUT
    assert "black.png" in stderr


def test_the_evidence_folder_must_not_be_a_file(model, data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "evidence").write_text("mine")
    picture = data / "test" / "cat" / "1.png"
    code, _, stderr = secateur("explain", picture, "--model", model, "--out", tmp_path / "out")
    assert code == ExitCode.BAD_INPUT
    assert "is a file" in stderr
    assert (tmp_path / "out" / "evidence").read_text() == "mine"
