"""A first recipe: every setting with its comment, and the recipe that it reads back as."""

import re
import tomllib
from dataclasses import fields, is_dataclass

import pytest

from secateur.pipeline.recipe.recipe import Recipe
from secateur.pipeline.recipe.starter import starter


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"model": 'a "quoted" dir/net.py:build', "data": "images", "weights": "w.pt", "seed": 7, "device": "cpu"},
        {"input_shape": (3, 32, 32), "mean": (0.1, 0.2, 0.3), "std": (0.2, 0.3, 1.0), "keep_classes": ("a", "b,c")},
        {"max_drop": 1.5, "page": False, "flip": False, "precisions": ("fp32", "int8"), "batches": (1, 8)},
    ],
)
def test_it_reads_back_as_the_same_recipe(options, tmp_path):
    recipe = Recipe().override(**options)
    (tmp_path / "recipe.toml").write_text(starter(recipe), encoding="utf-8")
    assert Recipe.read(tmp_path / "recipe.toml") == recipe


def test_every_setting_is_there_with_its_help_and_a_value_that_may_be_given():
    recipe, text = Recipe(), starter(Recipe())
    for entry in fields(recipe):
        section = getattr(recipe, entry.name)
        if not is_dataclass(section):
            assert f"# {entry.name} = " in text
            continue
        part = re.split(r"(?m)^\[", text.split(f"[{entry.name}]", 1)[1])[0]
        for one in fields(section):
            (value,) = re.findall(rf"(?m)^# ({one.name} = .*)$", part)
            assert part.index(f"# {one.metadata['help']}\n") < part.index(f"# {value}")
            assert one.name in tomllib.loads(value)


@pytest.mark.parametrize("section", [entry.name for entry in fields(Recipe) if is_dataclass(entry.default_factory)])
def test_the_examples_are_valid_each_on_its_own(section):
    belongs = {"mean": "std = [0.2, 0.2, 0.2]", "std": "mean = [0.5, 0.5, 0.5]", "cuda_graphs": 'provider = "cuda"'}
    part = re.split(r"(?m)^\[", starter(Recipe()).split(f"[{section}]", 1)[1])[0]
    for line in re.findall(r"(?m)^# (\w+ = .*)$", part):
        more = belongs.get(line.split(" ")[0], "")
        values = tomllib.loads(f"[{section}]\n{line}\n{more}\n")
        assert getattr(Recipe.from_dict(values), section) is not None
