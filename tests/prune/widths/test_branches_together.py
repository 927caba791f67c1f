"""Plans of a real network by doctored losses, and what several branches lose together."""

from dataclasses import replace

import pytest

from secateur.network.channels.follow import find_groups
from secateur.prune.cost import measure_cost
from secateur.prune.plan import PruningPlan
from secateur.prune.planning import plan_pruning
from secateur.prune.settings import BudgetSettings
from secateur.prune.widths.branch_losses import BranchLosses
from secateur.prune.widths.branches_together import MOST_PLANS, TOLERANCE, Measures, plan_as_settled, plan_with_branches
from secateur.prune.widths.measure_sensitivity import measure_sensitivity
from secateur.prune.widths.sensitivity import Sensitivity


@pytest.fixture
def network(tiny, network_of):
    return network_of(tiny("padded"))


@pytest.fixture
def groups(network):
    return find_groups(network.module, network.example())


@pytest.fixture
def planner(network, groups, scored):
    """A function from losses to a plan for half of the MACs, which counts its calls."""
    costs, scores = measure_cost(network), scored(groups)

    def plan(losses):
        plan.calls += 1
        return plan_pruning(groups, scores, costs, BudgetSettings(macs=0.5), losses)

    plan.calls = 0
    return plan


def doctored(groups, branch_loss):
    """One nat for half of any group; every whole branch the same."""
    return Sensitivity(
        {
            group.name: (
                *([(0, branch_loss)] if group.ends_branch else []),
                (group.units // 2, 1.0),
                (group.units, 0.0),
            )
            for group in groups
            if not group.locked
        },
        9,
        9,
    )


def reckoned(plan, losses):
    return sum(losses.loss(group.name)(group.kept) for group in plan.groups if group.kept and not group.locked)


def gone(plan, groups):
    ends = {group.name: group.branch for group in groups if group.ends_branch}
    return tuple(ends[group.name] for group in plan.groups if group.name in ends and not group.kept)


@pytest.fixture
def made_up(groups):
    """Measures by a rule: units lose what they should, whole branches what ``together`` says."""

    def build(sensitivity, together):
        def loss(plan):
            names = gone(plan, groups)
            return reckoned(plan, sensitivity) + (together(names) if names else 0.0)

        return Measures(together, loss, loss)

    return build


def test_a_sum_that_holds_is_planned_once(groups, planner, made_up):
    sensitivity = doctored(groups, 0.01)
    first = planner(sensitivity)
    assert len(gone(first, groups)) > 1

    def together(names):
        return 0.01 * len(names) * (1 + TOLERANCE)

    planner.calls = 0
    found = plan_with_branches(groups, sensitivity, planner, made_up(sensitivity, together))
    assert planner.calls == found.branches.plans == 3, "at first, without whole branches, and on the same footing"
    assert found.cut == first.cut
    assert found.branches.names == gone(first, groups)
    assert found.branches.sum_nats == pytest.approx(0.01 * len(found.branches.names))
    assert found.branches.together_nats == pytest.approx(together(found.branches.names))


def test_branches_that_ruin_the_network_together_are_kept(groups, planner, made_up):
    """Doctored to cost nothing one by one: the plan by the truth is found without knowing it."""
    sensitivity = doctored(groups, 1e-3)
    assert len(gone(planner(sensitivity), groups)) > 1
    planner.calls = 0
    found = plan_with_branches(groups, sensitivity, planner, made_up(sensitivity, lambda names: 100.0 * len(names)))
    assert 3 < planner.calls <= MOST_PLANS + 2
    assert found.branches is None
    assert all(group.kept for group in found.groups)
    assert found.cut == planner(doctored(groups, 100.0)).cut


def test_the_plan_with_the_least_loss_is_taken_if_the_sum_never_holds(groups, planner):
    """What they lose together grows with every call, so that no plan is right about it; the first is the best."""
    sensitivity, calls = doctored(groups, 1e-3), []

    def together(names):
        calls.append(names)
        return 0.01 * 2 ** len(calls)

    def loss(plan):
        return 2.0 ** len(calls) if gone(plan, groups) else reckoned(plan, sensitivity)

    measures = Measures(together, loss, lambda plan: float(not gone(plan, groups)))
    found = plan_with_branches(groups, sensitivity, planner, measures)
    assert planner.calls == MOST_PLANS + 2 == found.branches.plans
    assert found.branches.together_nats == 0.02
    assert found.cut == planner(sensitivity).cut


def test_losses_of_units_that_a_repair_undoes_keep_the_branches(groups, planner):
    """The cut without whole branches loses a hundredth of what its widths lose one by one; so much less do branches pay."""
    sensitivity = doctored(groups, 0.3)
    assert gone(planner(sensitivity), groups)

    def plan_loss(plan):
        return pytest.fail("no other plan") if gone(plan, groups) else reckoned(plan, sensitivity) / 100

    def never(what):
        pytest.fail("measured")

    found = plan_with_branches(groups, sensitivity, planner, Measures(never, plan_loss, never))
    assert found.branches is None


@pytest.mark.parametrize("branches_pay", [True, False])
def test_the_repaired_cut_decides_whether_branches_go(groups, planner, made_up, branches_pay):
    sensitivity = doctored(groups, 0.01)
    measures = replace(
        made_up(sensitivity, lambda names: 0.01 * len(names)),
        repaired=lambda plan: float(bool(gone(plan, groups)) != branches_pay),
    )
    found = plan_with_branches(groups, sensitivity, planner, measures)
    assert bool(gone(found, groups)) == (found.branches is not None) == branches_pay


def test_without_whole_branches_nothing_is_measured(groups, planner):
    def never(what):
        pytest.fail("measured")

    measures = Measures(never, never, never)
    assert plan_with_branches(groups, doctored(groups, 50.0), planner, measures).branches is None
    assert planner.calls == 1


def test_what_is_measured_decides_over_doctored_single_losses(network, groups, planner, scored, noise_images):
    images = noise_images(80)
    losses, true = BranchLosses(network, groups, images), measure_sensitivity(network, groups, scored(groups), images)
    wrong = true.with_branch_losses({group.name: 1e-6 for group in groups if group.ends_branch})
    first = planner(wrong)
    assert gone(first, groups)
    planner.calls = 0

    def loss(plan):
        return losses.of(plan.cut)

    found = plan_with_branches(groups, wrong, planner, Measures(losses.without, loss, loss))
    assert planner.calls > 3
    assert losses.of(found.cut) <= min(losses.of(first.cut), losses.of(planner(true.without_branches()).cut))
    if found.branches:
        assert found.branches.together_nats == pytest.approx(losses.without(found.branches.names))


def test_a_plan_keeps_what_was_measured(groups, planner, made_up, tmp_path):
    found = plan_with_branches(
        groups,
        doctored(groups, 0.01),
        planner,
        made_up(doctored(groups, 0.01), lambda names: 0.01),
    )
    found.save(tmp_path / "plan.json")
    again = PruningPlan.load(tmp_path / "plan.json")
    assert again == found
    assert again.branches.names
    planner(doctored(groups, 0.01)).save(tmp_path / "old.json")
    assert PruningPlan.load(tmp_path / "old.json").branches is None


@pytest.mark.parametrize("branch_loss", [1e-3, 50.0])
def test_what_one_plan_settled_serves_the_next_without_measuring(groups, planner, made_up, branch_loss):
    """The same budget gives the same plan by one call; branches that may not go stay, however little they are said to lose."""
    losses = doctored(groups, branch_loss)
    measures = made_up(losses, lambda names: branch_loss * len(names))
    first = plan_with_branches(groups, losses, planner, measures)
    never = Measures(*[lambda *_: pytest.fail("measured again")] * 3)
    planner.calls = 0
    again = plan_as_settled(groups, losses, planner, first, never)
    assert planner.calls == 1
    assert again.cut == first.cut
    assert again.branches == first.branches
    kept = plan_as_settled(groups, doctored(groups, 0.0), planner, replace(first, branches=None), never)
    assert not gone(kept, groups)
