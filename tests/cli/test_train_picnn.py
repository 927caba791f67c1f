"""``secateur train-picnn``, ``secateur recover`` and ``--pathway picnn`` as a user gives them."""

import contextlib
import json
import shutil
from dataclasses import replace

import pytest
from jsonschema import Draft202012Validator
from safetensors.torch import load_file

from secateur import load_model, prune_and_export
from secateur.common.errors import UsageError
from secateur.common.progress import Observer
from secateur.explain.picnn.entanglement import Entanglement, measure_entanglement
from secateur.explain.picnn.membership import Membership, with_membership
from secateur.explain.settings import PicnnSettings
from secateur.export.report.content import schema
from secateur.export.report.rendering import to_html, to_markdown
from secateur.network.images.digits_images import load_digits_splits
from secateur.pipeline.recipe.recipe import Recipe
from secateur.pipeline.single_commands import prune_into, recover_into
from secateur.pipeline.train_picnn import chosen_settings, train_picnn_into
from shell import secateur

BRIEF = PicnnSettings(epochs=2, batch_size=64, post_hoc_steps=60, draws=1)


@pytest.fixture(scope="module")
def recipe():
    return replace(Recipe().override(page=False, calibration=200), picnn=BRIEF)


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("picnn") / "run"
    return out, train_picnn_into(recipe, out, Observer())


def test_a_trained_network_comes_back_and_measures_as_reported(trained, recipe):
    out, result = trained
    assert {path.name for path in result.files} == {
        "model.safetensors", "membership.safetensors", "picnn.json", "membership.png", "cluster-maps.png",
    }  # fmt: skip
    assert all(path.stat().st_size for path in result.files)
    network = load_model(str(out))
    membership = Membership.load(out / "membership.safetensors")
    reported = Entanglement.from_json(json.loads((out / "picnn.json").read_text())["after"])
    pathway = with_membership(network, BRIEF, membership)
    found = measure_entanglement(pathway, load_digits_splits(network.preprocessing).test)
    assert found.acc1 == reported.acc1
    assert found.mis == pytest.approx(reported.mis, abs=1e-6)
    assert len(result.rows) == 2
    assert not any((out / ".secateur").glob("picnn/*")), "nothing is left of what was kept for a stop"


def test_a_trained_network_can_be_pruned_and_comes_back_again(trained, tmp_path):
    out, _ = trained
    code, _, error = secateur(
        "prune-and-export", "--model", out, "--data", "digits", "--out", tmp_path / "slim", "--epochs", 0, "-q"
    )
    assert code == 0, error
    first, small = load_model(str(out)), load_model(str(tmp_path / "slim"))
    assert sum(p.numel() for p in small.module.parameters()) < sum(p.numel() for p in first.module.parameters())


def test_post_hoc_the_network_is_not_written(recipe, tmp_path):
    result = train_picnn_into(recipe, tmp_path / "run", Observer(), post_hoc=True)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    report = json.loads((tmp_path / "run" / "picnn.json").read_text())
    assert report["before"]["acc1"] == report["after"]["acc1"], "the network is the same"
    assert report["after"]["acc2"]["value"] > report["before"]["acc2"]["value"] + 0.2
    assert sum(report["filters_per_class"]) == 64
    assert "P post hoc" in result.rows[1][0]


class Stopped(BaseException):
    """The user stops a run."""


class Stopper(Observer):
    """Stops the training when more than a share of its steps is done."""

    def stage(self, name):
        @contextlib.contextmanager
        def told():
            def progress(done, total):
                if name == "train" and done > 0.6 * total:
                    raise Stopped

            yield progress

        return told()


@pytest.mark.long
def test_a_training_that_was_stopped_goes_on_to_the_same_files(trained, recipe, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        train_picnn_into(recipe, out, Stopper())
    assert list((out / ".secateur" / "picnn").glob(".train-*.scratch/training.pt"))
    assert not (out / "model.safetensors").exists()
    train_picnn_into(recipe, out, Observer())
    for name in ("model.safetensors", "membership.safetensors"):
        assert (out / name).read_bytes() == (trained[0] / name).read_bytes()


def test_the_command_trains_with_a_new_layer(tmp_path):
    code, said, error = secateur(
        "train-picnn", "--epochs", 1, "--filters-per-class", 2, "--choices", "code", "--calibration", 100, "--out",
        tmp_path / "run", "-q",
    )  # fmt: skip
    assert code == 0, error
    assert "ACC2" in said
    recipe = Recipe.read(tmp_path / "run" / "recipe.toml")
    assert (recipe.picnn.loss_over, recipe.picnn.complement, recipe.picnn.initial) == ("right", "drawn", "softmax")
    assert load_file(tmp_path / "run" / "membership.safetensors")["probabilities"].shape == (10, 20)
    assert load_model(str(tmp_path / "run")).new_layer.filters == 20
    assert "P random (STD)" in said


@pytest.fixture(scope="module")
def slim(tmp_path_factory):
    out = tmp_path_factory.mktemp("slim") / "run"
    recipe = replace(
        Recipe().override(page=False, epochs=1, calibration=200, allocation="uniform", repair="bn", pathway="picnn"),
        picnn=BRIEF,
    )
    recipe = replace(recipe, measurement=replace(recipe.measurement, batches=(1,)))
    return out, prune_and_export(recipe, out)


@pytest.mark.long
def test_the_report_shows_the_measures_before_and_after_the_recovery(slim):
    out, result = slim
    report = result.report
    Draft202012Validator(schema()).validate(json.loads((out / "report.json").read_text()))
    assert [(row["state"], row["membership"]) for row in report["pathways"]] == [
        ("original", "post hoc"), ("repaired", "post hoc"), ("recovered", "trained"),
    ]  # fmt: skip
    page, text = to_html(report), to_markdown(report)
    for row in report["pathways"]:
        for name in ("acc1", "acc2", "acc3"):
            shown = f"{100 * row[name]['value']:.2f}%"
            assert shown in page
            assert shown in text
        assert f"{row['mis']:.3f}" in page
    assert report["pathways"][0]["acc1"]["value"] == pytest.approx(report["baseline"]["accuracy"], abs=0.004)
    assert report["pathways"][2]["acc1"]["value"] == pytest.approx(report["pruned"]["accuracy"], abs=0.004)
    assert (out / "membership.safetensors").is_file()
    assert (out / "membership.png").stat().st_size


def test_without_a_pathway_the_report_has_none(slim, tmp_path):
    recipe = Recipe().override(page=False, epochs=0, calibration=100, allocation="uniform", repair="none")
    recipe = replace(recipe, measurement=replace(recipe.measurement, batches=(1,)))
    report = prune_and_export(recipe, tmp_path / "run").report
    assert report["pathways"] is None
    assert "Filters and classes" not in to_html(report)
    older = {name: value for name, value in report.items() if name != "pathways"}
    assert "Filters and classes" not in to_html(older), "reports of before can still be shown"


@pytest.mark.long
def test_recover_fine_tunes_the_run_folders_network_and_tells_before_and_after(slim, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(slim[0], out)
    before = (out / "model.safetensors").read_bytes()
    code, said, error = secateur("recover", "--pathway", "picnn", "--epochs", 1, "--learning-rate", 0.05, "--out", out)
    assert code == 0, error
    assert "Validation accuracy" in said
    assert "secateur export" in said, "model.onnx is of the network before"
    found = json.loads((out / "recovery.json").read_text())
    assert [row["state"] for row in found["pathways"]] == ["original", "before", "recovered"]
    assert load_model(str(out)).cuts == load_model(str(slim[0])).cuts
    if found["history"]["best"]:
        assert (out / "model.safetensors").read_bytes() != before
    code, _, error = secateur("export", "--out", out, "-q")
    assert code == 0, error


def test_recover_without_a_pathway(slim, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(slim[0], out)
    recipe = Recipe.read(out / "recipe.toml").override(pathway="none", epochs=1)
    result = recover_into(recipe, out, Observer())
    assert result.pathways == ()
    assert json.loads((out / "recovery.json").read_text())["pathways"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("train-picnn", "--masks", "soft"), 2, "masks must be one of bernoulli, gumbel, csg, std"),
        (("train-picnn", "--choices", "mine"), 2, "--choices must be paper or code"),
        (("train-picnn", "--lambda", -1), 2, "weight must not be negative"),
        (("train-picnn", "--filters", 8, "--filters-per-class", 2), 2, "give one"),
        (("train-picnn", "--filters", 8, "--post-hoc"), 2, "a new layer needs training"),
        (("train-picnn", "--epochs", 3, "--post-hoc"), 2, "--epochs, --batch-size, --learning-rate"),
        (("train-picnn", "--target", "nowhere", "--epochs", 1), 3, "no layer 'nowhere'"),
        (("train-picnn", "--target", "block3.conv2", "--epochs", 1), 3, "cannot be the target"),
        (("prune-and-export", "--pathway", "picnn", "--epochs", 0), 2, "Give --epochs of at least 1"),
        (("prune-and-export", "--pathway", "agic"), 2, "pathway must be one of none, picnn"),
        (("recover",), 3, "recipe.toml does not exist"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_work(tmp_path, arguments, code, said):
    found, _, error = secateur(*arguments, "--out", tmp_path / "run")
    assert found == code
    assert said in " ".join(error.split())
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("post_hoc", [False, True])
def test_the_files_of_another_command_are_not_mixed_up(slim, recipe, post_hoc):
    before = (slim[0] / "recipe.toml").read_bytes()
    with pytest.raises(UsageError, match=r"holds plan\.json of another command"):
        train_picnn_into(recipe, slim[0], Observer(), post_hoc=post_hoc)
    assert (slim[0] / "recipe.toml").read_bytes() == before


@pytest.mark.long
def test_a_training_is_not_lost_when_measuring_is_stopped(trained, recipe, tmp_path, monkeypatch):
    calls = []

    def stopped(*arguments, **options):
        calls.append(None)
        if len(calls) == 2:
            raise Stopped
        return measure_entanglement(*arguments, **options)

    monkeypatch.setattr("secateur.pipeline.train_picnn.measure_entanglement", stopped)
    with pytest.raises(Stopped):
        train_picnn_into(recipe, tmp_path / "run", Observer())
    monkeypatch.undo()
    monkeypatch.setattr("secateur.network.training.augment", None)  # nothing is trained again
    train_picnn_into(recipe, tmp_path / "run", Observer())
    assert (tmp_path / "run" / "membership.safetensors").read_bytes() == (
        trained[0] / "membership.safetensors"
    ).read_bytes()


def test_a_recovery_of_other_weights_begins_anew(slim, tmp_path, monkeypatch):
    """The same plan with another repair: the checkpoint of the first recovery is not the second's."""
    out = tmp_path / "run"
    shutil.copytree(slim[0], out)
    recipe = Recipe.read(out / "recipe.toml").override(pathway="none", epochs=2)

    def stop(self, name):
        @contextlib.contextmanager
        def told():
            def progress(done, total):
                if name == "recover" and done > 0.6 * total:
                    raise Stopped

            yield progress

        return told()

    monkeypatch.setattr(Stopper, "stage", stop)
    with pytest.raises(Stopped):
        recover_into(recipe, out, Stopper())
    (kept,) = (out / ".secateur" / "recover").glob(".recover-*.scratch")
    prune_into(recipe.override(epochs=0, repair="none"), out, Observer())
    recover_into(recipe, out, Observer())
    assert not kept.exists()
    history = json.loads((out / "recovery.json").read_text())["history"]
    assert history["epochs"][0]["validation_accuracy"] < 0.9, "it begins at the network that was not repaired"


def test_a_new_layer_is_not_silently_left_out_of_a_recovery(tmp_path):
    recipe = replace(Recipe().override(page=False, pathway="picnn", epochs=1), picnn=PicnnSettings(filters=8))
    with pytest.raises(UsageError, match="adds a new layer"):
        prune_and_export(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_presets_and_single_choices():
    assert chosen_settings(PicnnSettings(), "code", loss_over=None).loss_over == "right"
    assert chosen_settings(PicnnSettings(loss_over="right"), "paper").loss_over == "all"
    assert chosen_settings(PicnnSettings(filters=8), None, filters_per_class=3.0).filters is None
