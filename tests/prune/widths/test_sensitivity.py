from dataclasses import replace

import pytest

from secateur.common.errors import InputError
from secateur.prune.widths.sensitivity import Sensitivity


def test_curves_are_monotone_between_and_below_what_was_measured():
    found = Sensitivity({"a": ((2, 1.0), (4, 0.3), (8, 0.35), (16, 0.0))}, 10, 10)
    loss = found.loss("a")
    values = [loss(kept) for kept in range(1, 17)]
    assert values == sorted(values, reverse=True)
    assert loss(16) == 0.0
    assert loss(2) == pytest.approx(1.0)
    assert loss(4) == pytest.approx(0.35)  # never less than the wider width lost
    assert loss(1) == pytest.approx(2.0)


def test_a_whole_branch_may_lose_less_than_a_few_of_its_units():
    found = Sensitivity({"a": ((0, 0.1), (2, 1.0), (8, 0.0))}, 10, 10, 5)
    loss = found.loss("a")
    assert (loss(0), loss(2), loss(8)) == (0.1, 1.0, 0.0)
    assert loss(1) == pytest.approx(2.0)
    other = found.with_branch_losses({"a": 0.7})
    assert other.loss("a")(0) == 0.7
    assert other.curves["a"][1:] == found.curves["a"][1:]


def test_saved_and_loaded(tmp_path):
    found = Sensitivity({"a": ((1, 0.5), (4, 0.0))}, 3, 4, 5)
    found.save(tmp_path / "s.json")
    assert Sensitivity.load(tmp_path / "s.json") == found
    (tmp_path / "old.json").write_text(
        '{"curves": {"a": [[1, 0.5], [4, 0.0]]}, "fitted_images": 3, "judged_images": 4}'
    )
    assert Sensitivity.load(tmp_path / "old.json") == replace(found, depth=0)
    (tmp_path / "t.json").write_text('{"curves": 3}')
    with pytest.raises(InputError, match=r"t\.json"):
        Sensitivity.load(tmp_path / "t.json")
