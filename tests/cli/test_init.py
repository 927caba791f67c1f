"""`secateur init`: a recipe that says what everything is for, and what is wrong with the inputs before it is written."""

import tomllib

from secateur.common.errors import ExitCode
from secateur.pipeline.recipe.recipe import Recipe
from shell import secateur


def test_the_recipe_holds_what_was_given_and_runs(model, data, tmp_path):
    out = tmp_path / "recipe.toml"
    code, stdout, stderr = secateur("init", "--model", model, "--data", data, "--macs", "0.7", "--out", out)
    assert code == 0, stderr
    assert tomllib.loads(out.read_text())["budget"] == {"macs": 0.7}
    assert Recipe.read(out) == Recipe().override(model=model, data=str(data), macs=0.7)
    assert "cat, dog" in stdout
    assert "--dry-run" in stdout
    quick = ["--epochs", "0", "--repair", "bn", "--rank-by", "magnitude", "--allocation", "uniform", "--no-evidence"]
    code, stdout, stderr = secateur(
        "prune-and-export", "--recipe", out, "--round-to", "1", "--batches", "1", *quick, "--out", tmp_path / "slim"
    )
    assert code == 0, stderr + stdout
    assert Recipe.read(tmp_path / "slim" / "recipe.toml").budget.macs == 0.7


def test_a_recipe_that_is_there_stays(model, data, tmp_path):
    out = tmp_path / "recipe.toml"
    out.write_text("mine")
    code, _, stderr = secateur("init", "--model", model, "--data", data, "--out", out)
    assert (code, out.read_text()) == (ExitCode.USAGE, "mine")
    assert "--force" in stderr
    assert secateur("init", "--model", model, "--data", data, "--out", out, "--force")[0] == 0
    assert "mine" not in out.read_text()


def test_bad_inputs_are_named_and_nothing_is_written(model, data, tmp_path):
    out = tmp_path / "recipe.toml"
    for options, said in (
        (["--model", model], "give --data"),
        (["--model", f"{model}ing", "--data", data], "building"),
        (["--model", model, "--data", tmp_path / "nowhere"], "nowhere"),
    ):
        code, _, stderr = secateur("init", *options, "--out", out)
        assert code == ExitCode.BAD_INPUT
        assert said in stderr
        assert not out.exists()
