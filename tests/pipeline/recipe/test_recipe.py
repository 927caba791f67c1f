import itertools
import math

import pytest

from secateur.common.errors import InputError, UsageError
from secateur.explain.settings import RankingSettings
from secateur.export.settings import GateSettings, MeasurementSettings
from secateur.network.settings import DataSettings, ModelSettings
from secateur.pipeline.recipe.recipe import Recipe
from secateur.prune.settings import BudgetSettings, RecoverySettings, RepairSettings

FULL = Recipe(
    ModelSettings("nets.py:build", "w.pth", (3, 32, 24), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
    DataSettings("folder with spaces/ünïcode", 321, 0.25),
    RankingSettings("taylor"),
    BudgetSettings(params=0.375, round_to=4),
    RepairSettings("mean"),
    RecoverySettings(7, 32, 0.003, 0.0, 3.5, 1.0, False),
    MeasurementSettings("cpu", 4, (2, 8)),
    GateSettings(1.5, 1.25, 0.5, "cpu"),
    "cpu",
    11,
)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        FULL,
        Recipe(budget=BudgetSettings(macs=0.1, round_to="auto")),
        Recipe(budget=BudgetSettings(size=0.3, rounds=4)),
        Recipe(budget=BudgetSettings(max_drop=1.5)),
    ],
)
def test_toml_brings_everything_back(tmp_path, recipe):
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert Recipe.read(path) == recipe
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_every_setting_that_has_a_value_is_written():
    import tomllib
    from dataclasses import fields

    written = tomllib.loads(FULL.to_toml())
    assert (written["device"], written["seed"]) == ("cpu", 11)
    for section in ("model", "data", "ranking", "budget", "repair", "recovery", "measurement", "gates"):
        value = getattr(FULL, section)
        for entry in fields(value):
            held = getattr(value, entry.name)
            if held is None:
                assert entry.name not in written[section]
            else:
                assert written[section][entry.name] == (list(held) if isinstance(held, tuple) else held)


def test_a_hand_written_recipe(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(
        'seed = 3\n[model]\nmodel = "resnet18"\n[budget]\nmacs = 0.4\nround_to = 8\n[recovery]\nlearning_rate = 1\n'
    )
    recipe = Recipe.read(path)
    assert (recipe.seed, recipe.model.model, recipe.budget.macs, recipe.budget.round_to) == (3, "resnet18", 0.4, 8)
    assert recipe.recovery == RecoverySettings(learning_rate=1)
    assert recipe.data == DataSettings()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[budget]\nmasc = 0.5", ("'masc'", "[budget]", "'macs'")),
        ("[recovry]\nepochs = 1", ("'recovry'", "'recovery'")),
        ("sed = 1", ("'sed'", "'seed'")),
        ("[budget]\nzzzzz = 1", ("'zzzzz'", "macs", "params", "round_to")),
        ("budget = 5", ("budget", "section")),
        ('[budget]\nmacs = "half"', ("budget.macs", "float", "'half'")),
        ("[budget]\nmacs = true", ("budget.macs", "float")),
        ("[data]\ncalibration = 10.5", ("data.calibration", "int")),
        ("[data]\ncalibration = true", ("data.calibration", "int")),
        ("[data]\ndata = 5", ("data.data", "str")),
        ("[recovery]\nflip = 1", ("recovery.flip", "bool")),
        ("[model]\ninput_shape = 32", ("model.input_shape",)),
        ("[model]\ninput_shape = [3, 32]", ("input_shape", "3,32")),
        ('[model]\ninput_shape = ["a", 1, 2]', ("input_shape",)),
        ('[model]\nmean = ["a"]\nstd = [1.0]', ("mean",)),
        ('[measurement]\nbatches = ["x"]', ("batches",)),
        ("[budget]\nmacs = nan", ("macs", "nan")),
        ("[budget]\nmacs = inf", ("macs", "inf")),
        ("[budget]\nmacs = 0.5\nparams = 0.5", ("macs and params",)),
        ("[budget]\nsize = 0.5\nmax_drop = 1.0", ("size and max_drop",)),
        ("[budget]\nmax_drop = 0", ("max_drop", "above 0")),
        ("[budget]\nmax_drop = true", ("budget.max_drop", "float")),
        ("[budget]\nrounds = 0", ("rounds", "at least 1")),
        ("[budget]\nrounds = 1.5", ("budget.rounds", "int")),
        ("seed = -1", ("seed", "-1")),
        ('seed = "1"', ("seed",)),
        ("device = 3", ("device",)),
        ('device = "tpu"', ("device", "'tpu'")),
        ("[[budget]]\nmacs = 0.5", ("budget",)),
    ],
)
def test_recipes_that_cannot_be_name_the_file_and_the_key(tmp_path, text, words):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        Recipe.read(path)
    message = str(caught.value)
    assert str(path) in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("content", [b"[budget\nmacs = 1", b"\xff\xfe", b"a = 1\na = 2"])
def test_files_that_are_no_toml(tmp_path, content):
    (tmp_path / "r.toml").write_bytes(content)
    with pytest.raises(InputError, match=r"r\.toml is not valid TOML"):
        Recipe.read(tmp_path / "r.toml")


def test_a_missing_recipe(tmp_path):
    with pytest.raises(InputError, match=r"r\.toml does not exist"):
        Recipe.read(tmp_path / "r.toml")


def test_a_folder_in_place_of_a_recipe(tmp_path):
    with pytest.raises(InputError):
        Recipe.read(tmp_path)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        (BudgetSettings, "macs", [0, 1, 1.4, -0.5, NAN, INF]),
        (BudgetSettings, "params", [0, 1, 2, NAN, -INF]),
        (BudgetSettings, "size", [0, 1, 1.5, -0.1, NAN, INF]),
        (BudgetSettings, "max_drop", [0, -1, 100.5, 101, NAN, INF, -INF]),
        (BudgetSettings, "rounds", [0, -1, 2.0, True]),
        (BudgetSettings, "round_to", [0, -8, "8", "none", 2.5, True]),
        (DataSettings, "calibration", [0, 1, -5]),
        (DataSettings, "validation_share", [0, 1, NAN, INF]),
        (RepairSettings, "repair", ["glue", ""]),
        (RecoverySettings, "epochs", [-1]),
        (RecoverySettings, "batch_size", [0, 1]),
        (RecoverySettings, "learning_rate", [0, -1, NAN, INF]),
        (RecoverySettings, "weight_decay", [-1e-9, NAN, INF]),
        (RecoverySettings, "temperature", [0, -1, NAN, INF]),
        (RecoverySettings, "distillation", [-0.1, 1.1, NAN, INF]),
        (MeasurementSettings, "provider", ["gpu"]),
        (MeasurementSettings, "latency_batch", [0]),
        (MeasurementSettings, "batches", [(0,), (4, -1)]),
        (GateSettings, "require_drop_below", [NAN, INF]),
        (GateSettings, "require_speedup", [0, -1, NAN, INF]),
        (GateSettings, "require_size_below", [0, -1, NAN, INF]),
        (GateSettings, "require_provider", ["auto", "gpu"]),
        (ModelSettings, "input_shape", [(3, 32), (3, 0, 32), (3, -1, 2), (1, 2, 3, 4)]),
    ],
)
def test_values_out_of_range_name_the_setting_and_what_was_given(kind, name, values):
    for value in values:
        with pytest.raises(UsageError, match=name):
            kind(**{name: value})


@pytest.mark.parametrize(
    "options",
    [
        {"mean": (0.5,)},
        {"std": (0.5,)},
        {"mean": (0.5,), "std": (0.5, 0.5)},
        {"mean": (NAN,), "std": (0.5,)},
        {"mean": (0.5,), "std": (0.0,)},
        {"mean": (0.5,), "std": (INF,)},
    ],
)
def test_normalisations_that_cannot_be(options):
    with pytest.raises(UsageError, match=r"mean|std"):
        ModelSettings(**options)


def test_two_budgets_contradict():
    with pytest.raises(UsageError, match="macs and params"):
        BudgetSettings(macs=0.5, params=0.5)
    for pair in itertools.combinations(("macs", "params", "size", "max_drop"), 2):
        with pytest.raises(UsageError, match=" and ".join(pair)):
            BudgetSettings(**dict.fromkeys(pair, 0.5))
    with pytest.raises(UsageError, match="3 budgets"):
        BudgetSettings(0.5, 0.5, 0.5)
    assert (BudgetSettings(size=0.3).resource, BudgetSettings(size=0.3).fraction) == ("size", 0.3)
    assert (BudgetSettings(max_drop=100).resource, BudgetSettings(max_drop=0.001).max_drop) == ("macs", 0.001)
    assert (BudgetSettings().resource, BudgetSettings().fraction) == ("macs", 0.5)
    assert (BudgetSettings(params=0.3).resource, BudgetSettings(params=0.3).fraction) == ("params", 0.3)


@pytest.mark.parametrize("given", [{}, {"macs": 0.2}, {"params": 0.2}, {"size": 0.2}, {"max_drop": 1.0}])
def test_another_fraction_of_the_same_resource(given):
    budget = BudgetSettings(**given, round_to=4, allocation="uniform", rounds=2)
    other = budget.of(0.7)
    assert (other.resource, other.fraction, other.max_drop) == (budget.resource, 0.7, None)
    assert (other.round_to, other.allocation, other.rounds) == (4, "uniform", 2)


def test_two_providers_contradict():
    with pytest.raises(UsageError, match="cpu contradicts require_provider cuda"):
        Recipe(measurement=MeasurementSettings("cpu"), gates=GateSettings(require_provider="cuda"))
    with pytest.raises(UsageError, match="contradicts"):
        Recipe(gates=GateSettings(require_provider="cuda")).override(provider="cpu")


def test_options_replace_single_settings():
    recipe = FULL.override(epochs=1, seed=5, model="digits", device=None, calibration=None)
    assert recipe.recovery == RecoverySettings(1, 32, 0.003, 0.0, 3.5, 1.0, False)
    assert recipe.seed == 5
    assert recipe.model.model == "digits"
    assert recipe.model.weights == "w.pth"
    assert (recipe.device, recipe.data) == (FULL.device, FULL.data)
    assert FULL.override() == FULL
    assert FULL.seed == 11


def test_a_zero_and_a_false_are_given_values():
    recipe = Recipe(recovery=RecoverySettings(flip=True)).override(epochs=0, flip=False, weight_decay=0.0)
    assert (recipe.recovery.epochs, recipe.recovery.flip, recipe.recovery.weight_decay) == (0, False, 0.0)


def test_a_budget_option_replaces_the_whole_budget_but_not_its_alignment():
    recipe = FULL.override(macs=0.6)
    assert (recipe.budget.macs, recipe.budget.params, recipe.budget.round_to) == (0.6, None, 4)
    assert recipe.override(params=0.2).budget == BudgetSettings(params=0.2, round_to=4)
    assert recipe.override(max_drop=2.0).budget == BudgetSettings(max_drop=2.0, round_to=4)
    assert recipe.override(max_drop=2.0).override(size=0.2).budget == BudgetSettings(size=0.2, round_to=4)
    assert recipe.override(rounds=3).budget == BudgetSettings(macs=0.6, round_to=4, rounds=3)
    with pytest.raises(UsageError, match="macs and params"):
        FULL.override(macs=0.5, params=0.5)
    assert FULL.override(round_to=2).budget == BudgetSettings(params=0.375, round_to=2)


def test_an_option_out_of_range_is_a_usage_error():
    with pytest.raises(UsageError, match="macs must be between 0 and 1"):
        Recipe().override(macs=1.4)


def test_measured_batches_hold_the_gates_own():
    assert MeasurementSettings(latency_batch=4, batches=(32, 1)).measured_batches == (1, 4, 32)
