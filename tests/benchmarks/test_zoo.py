"""Networks that people bring are opened, cut and exported as the committed table of the zoo says, or better."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur
from secateur.network.channels.group import ChannelGroup, Member

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "benchmarks" / "results").is_dir():
    pytest.skip("needs the checkout, not an installed package", allow_module_level=True)
sys.path.insert(0, str(ROOT))
from benchmarks.pages.zoo.tables import SAME, reason  # noqa: E402
from benchmarks.zoo import networks, one, opened  # noqa: E402
from benchmarks.zoo.__main__ import done, pictures, try_network  # noqa: E402

KEPT, BEFORE = (
    json.loads((ROOT / "benchmarks" / "results" / name).read_text()) for name in ("zoo.json", "zoo-before.json")
)
SEED, LIMIT_S = KEPT["seed"], 300
DOZEN = (
    "torchvision:squeezenet1_1",
    "torchvision:mobilenet_v3_small",
    "torchvision:resnet18",
    "timm:lcnet_050",
    "timm:tinynet_e",
    "timm:mnasnet_small",
    "timm:mobilenetv2_050",
    "timm:mobilenetv4_conv_small",
    "timm:ghostnet_050",
    "timm:regnetx_002",
    "timm:ese_vovnet19b_slim",
    "timm:dla46_c",
)
"""The quick ones, all of which the zoo's table ends with exit code 0. Add a network here when it does too and
takes but a few seconds; ``make test-all`` runs the main job on every row of the table."""
WORSE = 1e-6
"""By how much a share may be smaller than the committed one: the sum's rounding."""


def kept(name):
    row = KEPT["rows"][name]
    if "skipped" in row:
        pytest.skip(f"the package of {name} was not there: {row['skipped'][-80:]}")
    return row


@pytest.mark.parametrize("name", DOZEN)
def test_it_is_opened_cut_and_exported(name, tmp_path):
    row = kept(name)
    network = secateur.load_model(one.factory_file(tmp_path, name, row["pixels"], SEED))
    groups = secateur.find_groups(network.module, network.example())
    costs = secateur.measure_cost(network).along(groups)
    found = opened.opened(groups, costs)
    assert found["opened"] >= row["opened"] - WORSE
    assert found["lowest"] <= row["lowest"] + WORSE
    pictures(tmp_path / "pictures", row["pixels"], SEED)
    images = secateur.load_images(str(tmp_path / "pictures"), network.preprocessing)
    units = secateur.score_units(
        groups, secateur.rank_kernels(secateur.RankingTask(network, images.train), "magnitude")
    )
    small = secateur.cut(network, secateur.plan_pruning(groups, units, costs, secateur.BudgetSettings(macs=0.7)))
    assert secateur.measure_cost(small).whole.macs <= 0.7 * costs.whole.macs
    assert secateur.export_onnx(small, tmp_path / "small.onnx").parity.max_relative_difference <= SAME


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(KEPT["rows"]))
def test_the_main_job_is_no_worse_than_the_table(name):
    row = kept(name)
    if "stopped" in row:
        pytest.skip(f"{name} was {row['stopped']}")
    found = try_network(name, SEED, LIMIT_S)
    if "skipped" in found:
        pytest.skip(found["skipped"])
    assert found["opened"] >= row["opened"] - WORSE
    assert found["exit_code"] != 5, found
    if row["exit_code"] == 0:
        assert found["exit_code"] == 0, found
        assert found["parity"] <= max(SAME, 2 * row["parity"])


@pytest.mark.parametrize("name", sorted(set(KEPT["rows"]) & set(BEFORE["rows"])))
def test_no_network_is_open_less_than_before(name):
    before, now = BEFORE["rows"][name], kept(name)
    if "opened" in before and "opened" in now:
        assert now["opened"] >= before["opened"] - WORSE, name


def test_the_dozen_ends_well_in_the_table_and_every_row_is_of_the_zoo():
    known = set(networks.all_names())
    assert set(KEPT["rows"]) <= known
    assert set(BEFORE["rows"]) <= known
    assert len(DOZEN) >= 12
    for name in DOZEN:
        assert KEPT["rows"][name]["exit_code"] == 0, name


def test_the_lists_hold_every_family_and_sixty_of_timm():
    import timm
    from torchvision import models

    assert len(set(networks.TIMM)) == 60
    assert set(networks.TIMM) | set(networks.TIMM_MORE) <= set(timm.list_models())
    assert not set(networks.TIMM) & set(networks.TIMM_MORE)
    builders = models.list_models(module=models)
    assert {f"torchvision:{name}" for name in builders} <= set(networks.all_names())
    families = {models.get_model_builder(name).__module__ for name in builders}
    assert {models.get_model_builder(name).__module__ for name in networks.TORCHVISION} == families


def chain():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def member(layer, side, width):
    return Member(layer, side, "conv", width, tuple((channel,) for channel in range(width)))


def test_shares_against_sums_by_hand(tmp_path):
    """8 x 8 images: 64 * 9 * 3 * 8 MACs, then 64 * 9 * 8 * 4, then 4 * 2."""
    (tmp_path / "file.py").write_text(
        "from test_zoo_chain import chain as build\nINPUT_SHAPE = (3, 8, 8)\n"
        'NORMALISATION = {"mean": (0.5,) * 3, "std": (0.2,) * 3}\n'
    )
    sys.modules["test_zoo_chain"] = sys.modules[__name__]
    costs = secateur.measure_cost(secateur.load_model(f"{tmp_path}/file.py:build"))
    first, second, head = 64 * 27 * 8, 64 * 72 * 4, 8
    groups = (
        ChannelGroup("0", (member("0", "out", 8), member("2", "in", 8))),
        ChannelGroup("2", (member("2", "out", 4), member("5", "in", 4)), locked="no reason"),
    )
    found = opened.opened(groups, costs)
    assert found["macs"] == first + second + head
    assert found["opened"] == pytest.approx((first + second) / found["macs"])
    assert found["lowest"] == pytest.approx((first / 8 + second / 8 + head) / found["macs"])
    (locked,) = found["locked"]
    assert locked == {
        "reason": "no reason",
        "macs_share": pytest.approx(head / found["macs"]),
        "groups": 1,
        "first": "2",
    }
    free = opened.opened([groups[0], ChannelGroup("2", groups[1].members)], costs)
    assert (free["opened"], free["locked"]) == (1, [])
    assert free["lowest"] == pytest.approx((first / 8 + second / 32 + head / 4) / found["macs"])


def test_a_settled_network_passes_something_on_in_every_branch():
    """timm's ResNet starts with blocks whose last norm is zero."""
    module = networks.build("timm:resnet18", 64, 0)
    assert all(bool((child.weight != 0).all()) for child in module.modules() if isinstance(child, nn.BatchNorm2d))
    again = networks.build("timm:resnet18", 64, 0)
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(module(images), again(images))
        assert module(images).std(0).min() > 1e-4
    assert not any(child.training for child in module.modules())


def test_rows_are_kept_unless_something_is_missing():
    assert not done(None, True)
    assert done({"opened": 1.0}, True)
    assert not done({"opened": 1.0}, False)
    assert done({"exit_code": 3}, False)
    assert done({"stopped": "not done in 300 s"}, False)
    assert not done({"skipped": "No module named 'torchreid'"}, True)


def test_a_reason_is_the_greatest_lock_that_is_not_the_head():
    head = {"reason": "its units are the classes of the head.", "macs_share": 0.4}
    assert reason({"locked": [head, {"reason": "mixed", "macs_share": 0.25}]}) == "25.0%: mixed"
    assert reason({"locked": [head]}) == ""
    assert reason({"refused": "It cannot\nbe followed.", "exit_code": 3}) == "It cannot be followed."
