import json
from dataclasses import replace

import pytest

from secateur.common.errors import InputError
from secateur.network.channels.cut import cut_of
from secateur.prune.plan import PruningPlan
from secateur.prune.planning import plan_pruning
from secateur.prune.settings import BudgetSettings


def test_two_runs_give_equal_bytes_and_the_plan_comes_back(inputs, tmp_path):
    groups, scores, costs = inputs("inverted")
    first, second = (plan_pruning(groups, scores, costs, BudgetSettings(params=0.6)) for _ in range(2))
    first.save(tmp_path / "a.json")
    second.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert PruningPlan.load(tmp_path / "a.json") == first
    values = json.loads((tmp_path / "a.json").read_text())
    assert values["after"]["parameters"] == first.after.parameters
    assert [group["kept"] + len(group["removed"]) for group in values["groups"]] == [g.units for g in first.groups]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"groups": 5}', '{"groups": [{}]}', "no json"])
def test_files_that_hold_no_plan(tmp_path, content):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(InputError, match=r"plan\.json"):
        PruningPlan.load(tmp_path / "plan.json")


def test_what_removing_a_group_alone_saves(inputs, counts_after):
    groups, scores, costs = inputs("padded")
    plan = plan_pruning(groups, scores, costs, BudgetSettings(macs=0.5))
    for group, own in zip(groups, plan.groups, strict=True):
        alone = costs.of(counts_after(groups, [(group, own.removed)]))
        assert own.saves.macs == plan.before.macs - alone.macs
        assert own.saves.parameters == plan.before.parameters - alone.parameters


def test_the_plan_names_its_table_and_survives_the_disk(latency_problem, tmp_path):
    groups, scores, costs = latency_problem
    plan = plan_pruning(groups, scores, costs, BudgetSettings(latency=0.8, round_to=1))
    plan.save(tmp_path / "plan.json")
    back = PruningPlan.load(tmp_path / "plan.json")
    assert back == plan
    assert back.latency_table == costs.times.sha256
    assert (back.resource, back.fraction) == ("latency", 0.8)
    plan_pruning(groups, scores, costs, BudgetSettings(latency=0.8, round_to=1)).save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "plan.json").read_bytes()
    by_macs = plan_pruning(groups, scores, costs, BudgetSettings(macs=0.8))
    assert "latency_table" not in by_macs.to_json()


def test_a_plan_edited_by_hand_is_judged_by_the_table_where_there_is_one(latency_problem):
    groups, scores, costs = latency_problem
    plan = plan_pruning(groups, scores, costs, BudgetSettings(latency=0.6, round_to=1))
    whole = replace(plan, groups=tuple(replace(group, removed=()) for group in plan.groups))
    assert "leaves 1.000" in whole.revised(groups, costs).missed
    assert whole.revised(groups, replace(costs, times=None)).missed == ""
    assert cut_of(groups, {}) == whole.revised(groups, costs).cut


def test_a_plan_of_rounds_comes_back_from_its_file(tiny, network_of, tmp_path, cut_in_rounds):
    network = network_of(tiny("padded"))
    plan = cut_in_rounds(network, (0.7, 0.5))[2][-1][0]
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan
    values = json.loads((tmp_path / "plan.json").read_text())
    assert all(len(group["rounds"]) == group["units"] for group in values["groups"])
    assert "rounds" not in json.dumps(cut_in_rounds(network, (0.7,))[2][0][0].to_json())
