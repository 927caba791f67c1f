import hashlib
import json
import os
import stat
import subprocess
import sys
import time

import pytest

from secateur.common.errors import InputError, UsageError
from secateur.common.files import locked_folder, read_json, replacing, sha256_file, sha256_json, write_json, write_text


def test_a_file_takes_its_place_whole(tmp_path):
    path = tmp_path / "deep" / "er" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_after_an_exception_the_old_file_stands_and_nothing_lies_about(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write():
        with replacing(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_exception_leaves_no_new_file(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "file.txt"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_files_have_the_permissions_of_any_other(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / "ours", "x")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours")]
    assert modes[0] == modes[1]


def test_text_is_utf8_with_plain_line_ends(tmp_path):
    write_text(tmp_path / "t", "ä\nb\n")
    assert (tmp_path / "t").read_bytes() == b"\xc3\xa4\nb\n"


def test_json_goes_and_comes_back(tmp_path):
    value = {"b": [1, 2.5, None, True], "a": "ünï <&>"}
    write_json(tmp_path / "v.json", value)
    assert read_json(tmp_path / "v.json") == value == json.loads((tmp_path / "v.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_json_without_numbers(tmp_path, value):
    (tmp_path / "v.json").write_text("1")
    with pytest.raises(ValueError, match=r"Out of range|not JSON compliant"):
        write_json(tmp_path / "v.json", {"x": value})
    assert (tmp_path / "v.json").read_text() == "1"


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe{}"])
def test_json_that_cannot_be_read_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "v.json").write_bytes(content)
    with pytest.raises(InputError, match=r"v\.json"):
        read_json(tmp_path / "v.json")


def test_hashes(tmp_path):
    (tmp_path / "f").write_bytes(b"abc" * 100_000)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    assert sha256_json({"b": 1, "a": "ä"}) == hashlib.sha256(rb'{"a":"\u00e4","b":1}').hexdigest()
    assert sha256_json({"a": "ä", "b": 1}) == sha256_json({"b": 1, "a": "ä"})
    assert sha256_json([1, 2]) != sha256_json([2, 1])


HOLD = """
import sys, time
from pathlib import Path
from secateur.common.files import locked_folder
with locked_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path):
    folder = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline().strip() == "held"
        with pytest.raises(UsageError, match="Another run is writing to"), locked_folder(folder):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    deadline = time.monotonic() + 5
    while True:
        try:
            with locked_folder(folder) as held:
                assert held == folder
            return
        except UsageError:
            assert time.monotonic() < deadline, "the lock outlived its process"


def test_a_lock_is_given_back_after_an_exception(tmp_path):
    with pytest.raises(KeyError), locked_folder(tmp_path):
        raise KeyError
    with locked_folder(tmp_path):
        pass


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be created"), locked_folder(tmp_path / "file"):
        pass


def test_what_a_killed_run_left_unfinished_is_swept_away(tmp_path):
    code = """
import os, signal, sys
from pathlib import Path
from secateur.common.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "plan.json")])
    (tmp_path / ".plan.part").write_text("not ours")
    (left,) = tmp_path.glob(".plan.json.*.part")
    with locked_folder(tmp_path):
        assert not left.exists()
    assert (tmp_path / ".plan.part").exists()
