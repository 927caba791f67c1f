"""A consensus of rankings from end to end on the digits: every order's cut is tried, the nearest to the original is shipped."""

from dataclasses import replace

import pytest

from secateur import prune_and_export
from secateur.common.progress import silent
from secateur.explain.ranking import rank_kernels
from secateur.explain.scores import KernelScores, RankingTask
from secateur.network.channels.follow import find_groups
from secateur.network.evaluation import divergence, predict
from secateur.network.saved import load_network
from secateur.pipeline.inputs import load_inputs
from secateur.pipeline.recipe.recipe import Recipe
from secateur.pipeline.report import order_notes
from secateur.pipeline.single_commands import plan_into
from secateur.pipeline.stages.planning import Round, divergence_after_repair, measures_of, plan_stage
from secateur.pipeline.stages.ranking import Ranked, channels_of
from secateur.pipeline.stages.repairing import cut_and_repair
from secateur.pipeline.stages.store import StageStore
from secateur.prune import surgery
from secateur.prune.cost import measure_cost
from secateur.prune.plan import PruningPlan, WholeBranches
from secateur.prune.planning import plan_pruning
from secateur.prune.repair.repair import repair
from secateur.prune.widths.branch_losses import BranchLosses
from secateur.prune.widths.ranking_choice import OWN, best_plan, choices
from secateur.prune.widths.sensitivity import Sensitivity

SETTINGS = Recipe().override(page=False, epochs=0, calibration=200, rank_by="gap,random", macs=0.4, batches=(1,))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return prune_and_export(SETTINGS, tmp_path_factory.mktemp("consensus") / "out")


def test_every_orders_cut_is_repaired_and_the_nearest_to_the_original_is_shipped(run):
    inputs = load_inputs(SETTINGS)
    network, judged = inputs.network, inputs.splits.validation.sample(1000, SETTINGS.seed)
    groups, scores = (
        find_groups(network.module, network.example()),
        KernelScores.load(run.folder / "scores.safetensors"),
    )
    sensitivity = Sensitivity.load(run.folder / "sensitivity.json")
    original = predict(network.copy().module, judged)
    expected, left = {}, {}
    for name, choice in choices(groups, scores, sensitivity).items():
        own = plan_pruning(groups, choice.units, measure_cost(network), SETTINGS.budget, choice.sensitivity)
        small, _ = repair(network, surgery.cut(network, own), inputs.calibration, validation=inputs.splits.validation)
        expected[name], left[name] = divergence(predict(small.module, judged), original), own
    found = PruningPlan.load(run.folder / "plan.json")
    assert list(found.tried) == [OWN, "consensus", "gap", "random"]
    assert dict(found.tried) == pytest.approx(expected, rel=1e-3)
    assert found.order == min(expected, key=expected.__getitem__) != "random"
    assert found.cut == left[found.order].cut
    shipped = load_network(run.folder).module
    assert divergence(predict(shipped, judged), original) == pytest.approx(expected[found.order], rel=1e-3)


def test_the_report_says_what_was_tried_and_which_order_the_plan_goes_by(run):
    tried = PruningPlan.load(run.folder / "plan.json").tried
    (note,) = (note for note in run.report["notes"] if note.startswith("The plan follows"))
    assert all(f"{name} {value:.3g}" in note for name, value in tried.items())
    assert note in (run.folder / "report.md").read_text()


def test_no_label_of_validation_or_test_images_takes_part_in_the_choice(run, stages):
    inputs = load_inputs(SETTINGS)
    validation, test = inputs.splits.validation, inputs.splits.test
    wrong = replace(
        inputs.splits,
        validation=replace(validation, labels=(validation.labels + 1) % 10),
        test=replace(test, labels=(test.labels + 3) % 10),
    )
    found = stages.plan(replace(inputs, splits=wrong), KernelScores.load(run.folder / "scores.safetensors"))
    assert found == PruningPlan.load(run.folder / "plan.json")


def test_the_stage_on_its_own_makes_the_same_plan_and_says_which_order_it_is(run, recorder):
    before, observer = (run.folder / "plan.json").read_bytes(), recorder()
    plan_into(SETTINGS, run.folder, observer)
    assert (run.folder / "plan.json").read_bytes() == before
    assert any(text.startswith("The plan follows") for text in observer.told)


@pytest.mark.long
def test_tries_that_were_done_before_a_stop_are_not_done_again(tmp_path, monkeypatch):
    settings, done, last = SETTINGS.override(repair="bn"), [], 2

    def counted(inputs, plan, *rest):
        if len(done) == last:
            raise KeyboardInterrupt
        done.append(plan.cut)
        return cut_and_repair(inputs, plan, *rest)

    monkeypatch.setattr("secateur.pipeline.stages.planning.cut_and_repair", counted)
    with pytest.raises(KeyboardInterrupt):
        prune_and_export(settings, tmp_path / "out")
    last = 100
    run = prune_and_export(settings, tmp_path / "out", resume=True)
    found = PruningPlan.load(run.folder / "plan.json")
    assert len(found.tried) == 4
    assert len(done) == len(found.tried), "each order once"
    assert found.cut in done
    assert not list((tmp_path / "out").glob(".secateur/stages/.plan*"))


@pytest.mark.long
def test_every_round_tries_anew(tmp_path, monkeypatch):
    asked = []

    def watched(plans, *rest):
        asked.append([sum(len(group.removed) for group in one.groups) for one in plans.values()])
        return best_plan(plans, *rest)

    monkeypatch.setattr("secateur.pipeline.stages.planning.best_plan", watched)
    run = prune_and_export(SETTINGS.override(rounds=2, allocation="uniform", repair="bn"), tmp_path / "out")
    assert len(asked) == 2
    assert min(asked[1]) > max(asked[0])
    found = PruningPlan.load(run.folder / "plan.json")
    assert list(found.tried) == ["consensus", "gap", "random"]
    assert not found.missed


@pytest.fixture(scope="module")
def reckless():
    """Inputs of the digits, and a ranking whose measured losses say that whole branches cost nothing."""
    inputs = load_inputs(SETTINGS.override(rank_by="magnitude", repair="bn", macs=0.5))
    channels = channels_of(inputs.network, inputs.fingerprint)
    scores = rank_kernels(RankingTask(inputs.network, inputs.calibration), "magnitude")
    curves = {
        group.name: (*([(0, 1e-6)] if group.ends_branch else []), (group.units // 2, 1.0), (group.units, 0.0))
        for group in channels.groups
        if not group.locked
    }
    return inputs, Ranked(channels, scores, Sensitivity(curves, 9, 9), "reckless")


def test_a_plan_measures_its_whole_branches_and_the_report_says_so(reckless, tmp_path):
    inputs, ranked = reckless
    plan = StageStore(tmp_path).run(plan_stage(inputs, ranked.channels, inputs.recipe.budget, Round(1, ranked)))
    diverges = divergence_after_repair(inputs)
    units, sensitivity = ranked.choices["magnitude"].units, ranked.sensitivity
    first, keeping = (
        plan_pruning(ranked.channels.groups, units, ranked.channels.costs, inputs.recipe.budget, one)
        for one in (sensitivity, sensitivity.without_branches())
    )
    assert not all(group.kept for group in first.groups)
    assert diverges(plan, silent) <= diverges(keeping, silent)
    told = replace(plan, branches=WholeBranches(("block1.conv2", "block2.conv2"), 0.123, 0.1, 3))
    (note,) = (note for note in order_notes(told) if "whole branches" in note)
    assert all(word in note for word in ("block1.conv2, block2.conv2", "0.123", "0.1 ", "3"))


def test_what_was_measured_before_a_stop_is_not_measured_again(reckless, tmp_path, monkeypatch):
    inputs, ranked = reckless
    measures = measures_of(inputs, ranked.channels, Round(1, ranked), tmp_path)
    first = measures.together(["block1.conv2", "block2.conv2"])
    plan = plan_pruning(
        ranked.channels.groups, ranked.choices["magnitude"].units, ranked.channels.costs, inputs.recipe.budget
    )
    loss, repaired = measures.plan_loss(plan), measures.repaired(plan)
    for name in ("without", "of"):
        monkeypatch.setattr(BranchLosses, name, lambda *rest: pytest.fail("measured again"))
    monkeypatch.setattr("secateur.pipeline.stages.planning.cut_and_repair", lambda *rest: pytest.fail("repaired again"))
    again = measures_of(inputs, ranked.channels, Round(1, ranked), tmp_path)
    assert again.together(["block2.conv2", "block1.conv2"]) == first > 0
    assert again.plan_loss(plan) == loss > 0
    assert again.repaired(plan) == repaired > 0
