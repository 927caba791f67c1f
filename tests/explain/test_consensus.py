from dataclasses import replace

import pytest
import torch
from scipy.stats import rankdata

from secateur.common.errors import InputError, UsageError
from secateur.explain import registry
from secateur.explain.baselines import score_magnitude
from secateur.explain.consensus import (
    area_between,
    changed_sides,
    combined,
    fractional_ranks,
    halves,
    score_together,
    weights_of,
)
from secateur.explain.faithfulness.curves import faithfulness_curves
from secateur.explain.ranking import members_of, rank_kernels
from secateur.explain.registry import get_ranker
from secateur.explain.scores import KernelScores, LayerScores, RankingTask
from secateur.explain.settings import AgicSettings, PicnnSettings
from secateur.explain.unit_scores import score_units
from secateur.network.channels.follow import find_groups
from secateur.pipeline.inputs import load_inputs
from secateur.pipeline.recipe.recipe import Recipe


@pytest.fixture
def own_rankers():
    """What a test registers is gone after it."""
    with registry.temporary():
        yield


@pytest.fixture(scope="module")
def task(tiny, network_of, noise_images, spread):
    network, images = spread(network_of(tiny("Padded")), noise_images(160))
    return RankingTask(network, images, picnn=PicnnSettings(post_hoc_steps=30, batch_size=32))


def test_ranks_are_scipys_over_the_number_of_kernels():
    layers = {"a": torch.tensor([3.0, 1.0, 3.0, 2.0]), "b": torch.tensor([5.0])}
    found = fractional_ranks(layers)
    assert found["a"].tolist() == (rankdata([3, 1, 3, 2]) / 4).tolist() == [0.875, 0.25, 0.875, 0.5]
    assert found["b"].tolist() == [1.0]


def test_weights_are_shares_of_what_is_above_zero():
    assert weights_of({"a": 0.3, "b": 0.1, "c": -0.2}) == pytest.approx({"a": 0.75, "b": 0.25, "c": 0.0})
    assert weights_of({"a": -1.0, "b": 0.0}) == {"a": 0.5, "b": 0.5}


def test_layers_that_some_methods_lack_are_ranked_by_the_others():
    ranks = {
        "first": {"x": torch.tensor([0.5, 1.0]), "y": torch.tensor([1.0, 0.5])},
        "second": {"x": torch.tensor([1.0, 0.5])},
        "third": {"z": torch.tensor([0.5, 1.0])},
    }
    found = combined(ranks, {"first": 0.25, "second": 0.75, "third": 0.0})
    assert found["x"].tolist() == [0.875, 0.625]
    assert found["y"].tolist() == [1.0, 0.5]
    assert found["z"].tolist() == [0.5, 1.0], "its only method has no weight, and is all there is"


def test_kernels_that_change_sides_are_counted():
    first = {"x": torch.tensor([1.0, 2, 3, 4]), "y": torch.tensor([1.0, 2])}
    second = {"x": torch.tensor([4.0, 1, 3, 2]), "y": torch.tensor([1.0, 2])}
    assert changed_sides(first, second) == pytest.approx(2 / 6)  # of x, 0 leaves the lower half and 3 comes in
    assert changed_sides(first, first) == 0


def test_a_ranking_and_its_opposite_are_worth_the_same_with_another_sign(task):
    scores = get_ranker("gap").score(task)
    turned = KernelScores("turned", "", {name: -values for name, values in scores.layers.items()})
    areas = [area_between(faithfulness_curves(task.network, task.images, one)) for one in (scores, turned)]
    assert areas[0] > 0
    assert areas[1] == pytest.approx(-areas[0], abs=0.02)  # equal scores go in the order of their index, both ways


@pytest.mark.usefixtures("own_rankers")
def test_each_method_ranks_on_one_half_and_is_judged_on_the_other(task, monkeypatch):
    seen = []

    @registry.register("watched", summary="s", needs="labels", unit="u", source="me")
    def score(own):
        seen.append(own.images.names)
        return LayerScores(score_magnitude(own).layers)

    judged = []
    monkeypatch.setattr(
        "secateur.explain.consensus.faithfulness_curves",
        lambda network, images, scores, **options: (
            judged.append(images.names) or faithfulness_curves(network, images, scores, **options)
        ),
    )
    found = score_together(task, ("watched", "gap"))
    (ranked,) = seen
    assert len(set(judged)) == 1
    assert set(ranked).isdisjoint(judged[0])
    assert set(ranked) | set(judged[0]) == set(task.images.names)
    assert found.details["images that ranked"] == found.details["images that judged"] == 80
    first, _ = halves(task.images, task.seed)
    assert torch.bincount(first.labels, minlength=4).tolist() == pytest.approx(
        (torch.bincount(task.images.labels, minlength=4) / 2).tolist(), abs=1
    )


def test_the_consensus_is_the_weighted_mean_of_its_members_ranks(task):
    found = score_together(task, ("gap", "magnitude", "random"))
    first, second = halves(task.images, task.seed)
    areas, ranks = {}, {}
    for method in ("gap", "magnitude", "random"):
        scores = get_ranker(method).score(replace(task, images=first))
        curves = faithfulness_curves(task.network, second, scores, batch_size=task.batch_size)
        areas[method] = max(0.0, curves.pruning.probability_area - curves.deletion.probability_area)
        ranks[method] = {name: rankdata(values.numpy()) / len(values) for name, values in scores.layers.items()}
    total = sum(areas.values())
    for name, values in found.layers.items():
        expected = sum(areas[method] / total * ranks[method][name] for method in ranks if name in ranks[method])
        assert values.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert found.details["weights"]["gap"] == pytest.approx(areas["gap"] / total)
    assert set(found.details["without"]) == {"gap", "magnitude", "random"}
    groups = find_groups(task.network.module, task.network.example(2))
    assert set(score_units(groups, found)) == {group.name for group in groups if not group.locked}


def test_a_method_that_cannot_run_is_left_out_by_name_with_what_it_lacked(task):
    few = replace(task, images=task.images.sample(30, 0), agic=AgicSettings(images=100))
    found = score_together(few, ("agic", "gap", "picnn"))
    assert found.details["members"] == ["gap", "picnn"]
    assert "at least 10 images of each class" in found.details["left out"]["agic"]
    assert sum(found.details["weights"].values()) == pytest.approx(1)


def test_where_nothing_can_run_all_reasons_are_given(task):
    few = replace(task, images=task.images.sample(12, 0))
    with pytest.raises(InputError, match=r"None of agic, refusing can rank.*agic: AGIC needs"):
        registry_with_refusing(few)


def registry_with_refusing(task):
    with registry.temporary():

        @registry.register("refusing", summary="s", needs="labels", unit="u", source="me")
        def score(own):
            raise InputError("it refuses")

        return score_together(task, ("agic", "refusing"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gap,gap", "two or more different"),
        ("gap,nowhere", "unknown ranker 'nowhere'"),
        ("gap,consensus", "Use it alone"),
        ("gap,", "unknown ranker ''"),
    ],
)
def test_what_makes_no_consensus_is_refused(text, said):
    with pytest.raises(UsageError, match=said):
        members_of(text)


def test_names_with_commas_and_the_consensus_by_name(task):
    assert members_of("gap") == ("gap",)
    assert members_of("gap, random") == ("gap", "random")
    assert members_of("consensus") == ("agic", "gap", "picnn")
    assert rank_kernels(task, "gap,random").details["members"] == ["gap", "random"]


def test_too_few_images_are_refused(task):
    with pytest.raises(InputError, match="at least four \\(got 3\\)"):
        score_together(replace(task, images=task.images.subset(torch.arange(3))), ("gap", "random"))


def test_wrong_labels_of_validation_and_test_images_change_nothing(stages):
    """They never reach the weights."""
    recipe = Recipe().override(calibration=120, rank_by="gap,picnn,magnitude")
    inputs = load_inputs(replace(recipe, picnn=PicnnSettings(post_hoc_steps=20)))
    honest = stages.explain(inputs)
    splits = inputs.splits
    poisoned = replace(
        splits,
        validation=replace(splits.validation, labels=(splits.validation.labels + 1) % 10),
        test=replace(splits.test, labels=(splits.test.labels + 3) % 10),
    )
    again = stages.explain(replace(inputs, splits=poisoned))
    assert honest.details["weights"] == again.details["weights"]
    for name, values in honest.layers.items():
        assert torch.equal(values, again.layers[name])
