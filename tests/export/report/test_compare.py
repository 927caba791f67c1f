"""Two reports side by side."""

import copy

import pytest

from secateur.cli.commands import app
from secateur.export.report.compare import NOT_COMPARABLE, compare_reports, to_html, to_markdown, write_comparison
from secateur.export.report.report import write_report


@pytest.fixture
def other(report):
    """The same run on a GPU, with another ranker, fewer MACs and more loss."""
    made = copy.deepcopy(dict(report))
    made["provider"] = "cuda"
    made["environment"] |= {"gpu": "a GPU", "driver": "570.1", "packages": {"torch": "9"}}
    made["recipe"] = {**made["recipe"], "ranking": {"rank_by": "random"}, "seed": 1}
    made["pruned"] |= {"accuracy": 0.8, "accuracy_interval": {"low": 0.76, "high": 0.84}, "macs": 1_000_000}
    made["gates"] = [*made["gates"][:1], {**made["gates"][1], "verdict": "pass"}]
    return made


def test_the_same_machine_is_compared(report):
    second = copy.deepcopy(dict(report))
    second["pruned"]["onnx_bytes"] = 2048
    found = compare_reports(report, second, ("a", "b"))
    assert found.alarms == found.recipes == found.environments == ()
    rows = {row[0]: row[1:] for row in found.rows}
    assert rows["ONNX file"] == ("4.10 kB", "2.05 kB", "-50.00%")
    assert rows["top-1 accuracy"][2].startswith("0.00 points")
    assert rows["latency, batch 1"][2].startswith("+0.0%")


def test_another_machine_raises_an_alarm_and_takes_the_change_away(report, other):
    found = compare_reports(report, other, ("a", "b"))
    assert len(found.alarms) == 1
    for word in ("provider: cpu against cuda", "gpu: none against a GPU", "driver: none against 570.1"):
        assert word in found.alarms[0]
    rows = {row[0]: row[1:] for row in found.rows}
    assert rows["latency, batch 1"][2] == NOT_COMPARABLE
    assert rows["top-1 accuracy"][:2] == ("88.00%", "80.00%")
    assert rows["top-1 accuracy"][2].startswith("-8.00 points")
    assert rows["MACs"] == ("2.00 M", "1.00 M", "-50.00%")
    assert ("ranking.rank_by", "gap", "random") in found.recipes
    assert ("packages.torch", "–", "9") in found.environments
    assert ("speedup", "not measured (– against 1.2)", "not set") in found.gates


def test_other_images_raise_an_alarm(report):
    second = copy.deepcopy(dict(report))
    second["inputs"]["data_listing_sha256"] = "1" * 64
    found = compare_reports(report, second, ("a", "b"))
    assert "Accuracy is not comparable. test images" in found.alarms[0]
    assert found.rows[0][3] == NOT_COMPARABLE


def test_both_forms_escape_names_and_show_alarms(report, other, tmp_path):
    found = compare_reports(report, other, ("<b>|a", "b"))
    text, page = to_markdown(found), to_html(found)
    assert "<script>" not in text
    assert "<script>" not in page
    assert "\\<b\\>\\|a" in text
    assert found.alarms[0].split(".")[0] in text
    assert "&lt;b&gt;" in page
    paths = write_comparison(found, tmp_path / "new")
    assert [path.name for path in paths] == ["compare.md", "compare.html"]


def test_the_command_prints_writes_and_takes_folders_or_files(report, other, tmp_path, capsys):
    write_report(report, tmp_path / "a")
    write_report(other, tmp_path / "b")
    arguments = ["report", "--compare", tmp_path / "a", tmp_path / "b" / "report.json", "--out", tmp_path / "both"]
    with pytest.raises(SystemExit) as ended:
        app([str(argument) for argument in arguments])
    told = capsys.readouterr()
    assert ended.value.code == 0
    assert "not comparable" in told.out
    assert "Latency is not comparable" in told.err
    assert (tmp_path / "both" / "compare.html").is_file()


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1280, "dark")])
def test_page_of_the_comparison_in_a_browser(report, other, tmp_path, browser, width, scheme):
    _, page = write_comparison(compare_reports(report, other, ("first", "second")), tmp_path)
    with browser.open(page, width, scheme) as opened:
        assert not opened.scrolls_sideways()
        assert not opened.faults
        assert not opened.requests
        assert not opened.serious()
