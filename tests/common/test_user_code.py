import pytest

from secateur.common.errors import InputError
from secateur.common.user_code import import_file, import_function, split_function


@pytest.mark.parametrize("spec", ["model.txt:build", "model.py", "model.py:", "model.py:not a name", ":build"])
def test_a_function_must_be_named_in_full(spec):
    with pytest.raises(InputError, match=r"file\.py:function"):
        split_function(spec, "--model")


def test_a_users_file_may_import_its_neighbours(tmp_path):
    import sys

    (tmp_path / "neighbour_of_mine.py").write_text("value = 41\n")
    (tmp_path / "mine.py").write_text(
        "import neighbour_of_mine\ndef build():\n    return neighbour_of_mine.value + 1\n"
    )
    before = list(sys.path)
    assert import_function(f"{tmp_path / 'mine.py'}:build", "--model")() == 42
    assert sys.path == before


def test_two_files_of_one_name_stay_apart(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "net.py").write_text(f"def build():\n    return {name!r}\n")
    first = import_function(f"{tmp_path / 'a' / 'net.py'}:build", "--model")
    second = import_function(f"{tmp_path / 'b' / 'net.py'}:build", "--model")
    assert (first(), second()) == ("a", "b")


@pytest.mark.parametrize(
    "text", ["import a_module_that_does_not_exist", "def build(:\n    pass", "raise SystemExit(3)", "1 / 0"]
)
def test_a_file_that_fails_is_named_with_its_error(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(InputError, match=r"mine\.py failed with"):
        import_file(path, "--model")
