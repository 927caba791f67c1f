"""Tables of this machine and of the rankings."""

from shell import secateur


def test_tables_of_rankers_and_doctor():
    code, stdout, _ = secateur("rankers")
    assert code == 0
    for name in ("gap", "random", "magnitude", "bn-scale", "fpgm", "taylor", "lamp", "shapley"):
        assert name in stdout
    code, stdout, _ = secateur("doctor")
    assert code == 0
    assert "provider cuda" in stdout
