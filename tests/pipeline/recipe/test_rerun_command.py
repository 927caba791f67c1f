"""The command that a report gives, parsed again by the command line."""

import inspect
import shlex
from dataclasses import fields, is_dataclass

import pytest

import secateur.pipeline.prune_and_export
from secateur.cli.commands import app
from secateur.cli.prune_and_export import prune_and_export_command
from secateur.pipeline.recipe.recipe import Recipe
from secateur.pipeline.recipe.rerun_command import METHODS, WITHOUT_OPTION, command_of


@pytest.fixture
def parsed(monkeypatch, tmp_path):
    """The recipe that a command line comes to."""

    def parse(text, recipe):
        found = []

        def take(settings, out, **options):
            found.append(settings)
            raise KeyboardInterrupt

        monkeypatch.setattr(secateur.pipeline.prune_and_export, "prune_and_export", take)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
        program, *arguments = shlex.split(text)
        assert program == "secateur"
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            app(arguments)
        return found[0]

    return parse


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"macs": 0.37, "seed": 7, "rank_by": "gap,random", "round_to": 4, "flip": False, "device": "cpu"},
        {"max_drop": 1.5, "rounds": 3, "round_to": "auto", "flip": True, "epochs": 0, "require_drop_below": -0.5},
        {"model": "a dir/it's.py:net", "weights": "$HOME/w;rm -rf", "data": "cifar10:/d a", "learning_rate": 1e-7},
        {"input_shape": (3, 32, 32), "mean": (-0.5, 0.1, 1e-5), "std": (0.2, 0.3, 1.0)},
        {"keep_classes": ("a b", "'c'", "-d"), "require_speedup": 1.25, "require_size_below": 3, "latency_batch": 8},
        {"latency": 0.7, "latency_batch": 1},
        {"precisions": ("fp32", "int8"), "batches": (1, 8), "threads": 3},
        {"provider": "cuda", "cuda_graphs": True},
        {"input": "uint8", "latency_of": "device", "torch_times": False},
        {"page": False, "evidence_images": 3, "misclassified": 2, "evidence_kernels": 9},
        {"baseline": "old/report.json", "allow_size_regression": 0.0, "baseline_latency": False},
    ],
)
def test_parsing_the_command_gives_the_same_recipe(parsed, options):
    recipe = Recipe().override(**options)
    text = command_of(recipe.to_dict())
    assert "--recipe" not in text
    assert parsed(text, recipe) == recipe


@pytest.mark.parametrize(
    "values",
    [
        {"recovery": {"temperature": 4.0}},
        {"agic": {"images": 10}},
        {"data": {"keep_classes": ["a,b", "c"]}},
        {"model": {"model": "two\nlines.py:net"}},
    ],
)
def test_what_has_no_option_is_left_to_the_recipe_file(parsed, values):
    recipe = Recipe.from_dict(values)
    text = command_of(recipe.to_dict())
    assert "--recipe recipe.toml" in text
    assert "\n" not in text
    assert parsed(text, recipe) == recipe


def test_a_recipe_of_another_version_is_left_to_the_recipe_file():
    assert "--recipe recipe.toml" in command_of({"surprise": {"of": 1}})


def test_every_setting_has_an_option_or_is_named_as_having_none():
    options = set(inspect.signature(prune_and_export_command).parameters)
    recipe, without = Recipe(), set()
    for entry in fields(recipe):
        section = getattr(recipe, entry.name)
        if not is_dataclass(section):
            assert entry.name in options
        elif entry.name not in METHODS:
            without |= {f"{entry.name}.{one.name}" for one in fields(section) if one.name not in options}
    assert without == WITHOUT_OPTION
