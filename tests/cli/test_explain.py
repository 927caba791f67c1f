"""The evidence for pictures from the command line."""

import json

import pytest
from PIL import Image

from secateur.common.errors import ExitCode
from shell import secateur


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
    assert tree["occlusions"][-1]["why"] == "requested"
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
        (["--top", "2"], ExitCode.USAGE, "apply to pictures only"),
        (["PICTURE", "--rank-by", "gap"], ExitCode.USAGE, "apply to ranking only"),
        (["PICTURE", "--misclassified", "2"], ExitCode.USAGE, "choose images"),
        (["PICTURE", "--evidence-kernels", "0"], ExitCode.USAGE, "evidence_kernels must be"),
        (["PICTURE", "--top", "0"], ExitCode.USAGE, "at least 1"),
        (["PICTURE", "--baseline", "median"], ExitCode.USAGE, "zero or mean"),
        (["PICTURE", "--baseline", "mean"], ExitCode.USAGE, "Give --data"),
        (["PICTURE", "--kernel", "0:1:99999999999999999999:0"], ExitCode.USAGE, "too large for any network"),
        (["PICTURE", "--kernel", "0:1"], ExitCode.USAGE, "LAYER:KERNEL:ROW:COLUMN"),
        (["PICTURE", "--kernel", "0:1:2:3", "--class", "1"], ExitCode.USAGE, "exclude each other"),
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
