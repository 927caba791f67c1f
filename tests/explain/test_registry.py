import pytest
import torch

from secateur.common.errors import UsageError
from secateur.explain.registry import get_ranker, rankers, register, temporary
from secateur.explain.scores import LayerScores


def test_an_unknown_ranker_lists_the_valid_ones():
    with pytest.raises(UsageError) as caught:
        get_ranker("magic")
    for name in ("gap", "random", "magnitude", "bn-scale", "fpgm", "taylor", "lamp"):
        assert name in str(caught.value)
        assert get_ranker(name).name == name


def test_rankers_say_what_they_are():
    found = rankers()
    assert [ranker.name for ranker in found] == sorted(ranker.name for ranker in found)
    assert all(ranker.summary and ranker.unit and ranker.source for ranker in found)
    assert {ranker.needs for ranker in found} <= {"weights", "images", "labels"}


def test_a_name_is_registered_once():
    def score(task):
        return LayerScores({})

    with temporary():
        registered = register("mine", summary="s", needs="weights", unit="u", source="me")(score)
        assert get_ranker("mine").score is registered
        with pytest.raises(ValueError, match="'mine' is registered already"):
            register("mine", summary="s", needs="weights", unit="u", source="me")(score)


def test_a_temporary_ranker_is_gone_afterwards():
    before = rankers()
    with temporary():
        register("mine", summary="s", needs="weights", unit="u", source="me")(lambda task: LayerScores({}))
        assert len(rankers()) == len(before) + 1
    assert rankers() == before


def test_scores_carry_the_name_and_unit_of_their_ranker():
    with temporary():
        register("mine", summary="s", needs="weights", unit="points", source="me")(
            lambda task: LayerScores({"a": torch.ones(2)}, {"a": torch.ones(3, 2)}, {"images": 7})
        )
        found = get_ranker("mine").score(None)
    assert (found.method, found.unit, found.details) == ("mine", "points", {"images": 7})
    assert found.layers["a"].tolist() == [1, 1]
    assert found.per_class["a"].shape == (3, 2)
