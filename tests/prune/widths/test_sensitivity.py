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


def test_saved_and_loaded(tmp_path):
    found = Sensitivity({"a": ((1, 0.5), (4, 0.0))}, 3, 4)
    found.save(tmp_path / "s.json")
    assert Sensitivity.load(tmp_path / "s.json") == found
    (tmp_path / "t.json").write_text('{"curves": 3}')
    with pytest.raises(InputError, match=r"t\.json"):
        Sensitivity.load(tmp_path / "t.json")
