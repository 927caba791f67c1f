"""Plans of a real network by doctored losses, and what several branches lose together."""

import pytest

from secateur.network.channels.follow import find_groups
from secateur.prune.cost import measure_cost
from secateur.prune.plan import PruningPlan
from secateur.prune.planning import plan_pruning
from secateur.prune.settings import BudgetSettings
from secateur.prune.widths.branch_losses import BranchLosses
from secateur.prune.widths.branches_together import MOST_PLANS, TOLERANCE, plan_with_branches_together
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


def test_a_sum_that_holds_is_planned_once(groups, planner):
    sensitivity, asked = doctored(groups, 0.01), []

    def together(names):
        asked.append(names)
        return 0.01 * len(names) * (1 + TOLERANCE)

    found = plan_with_branches_together(groups, sensitivity, planner, together)
    assert planner.calls == len(asked) == found.branches.plans == 1
    gone = [group.branch for group in groups if group.name in {one.name for one in found.groups if not one.kept}]
    assert found.branches.names == tuple(dict.fromkeys(gone)) == tuple(asked[0])
    assert len(gone) > 1
    assert found.branches.sum_nats == pytest.approx(0.01 * len(gone))
    assert found.branches.together_nats == pytest.approx(0.01 * len(gone) * (1 + TOLERANCE))


def test_branches_that_ruin_the_network_together_are_kept(groups, planner):
    """Doctored to cost nothing one by one: the plan by the truth is found without knowing it."""
    sensitivity = doctored(groups, 1e-3)

    def together(names):
        return 100.0 * len(names)

    first = planner(sensitivity)
    assert sum(not group.kept for group in first.groups) > 1
    planner.calls = 0
    found = plan_with_branches_together(groups, sensitivity, planner, together)
    assert 1 < planner.calls <= MOST_PLANS
    assert found.branches is None
    assert all(group.kept for group in found.groups)
    assert found.cut == planner(doctored(groups, 100.0)).cut


def test_the_plan_with_the_least_loss_is_taken_if_the_sum_never_holds(groups, planner):
    """What they lose together grows with every call, so no plan is right about it; the first is the best."""
    sensitivity, calls = doctored(groups, 1e-3), []

    def together(names):
        calls.append(names)
        return 0.01 * 2 ** len(calls)

    found = plan_with_branches_together(groups, sensitivity, planner, together)
    assert planner.calls == MOST_PLANS == found.branches.plans
    assert found.branches.together_nats == 0.02
    assert found.cut == planner(sensitivity).cut


def test_without_whole_branches_nothing_is_measured(groups, planner):
    found = plan_with_branches_together(groups, doctored(groups, 50.0), planner, lambda names: pytest.fail("measured"))
    assert found.branches is None
    assert planner.calls == 1


def test_what_is_measured_together_decides_over_doctored_single_losses(network, groups, planner, scored, noise_images):
    images = noise_images(80)
    losses, true = BranchLosses(network, groups, images), measure_sensitivity(network, groups, scored(groups), images)
    ends = {group.name: group.branch for group in groups if group.ends_branch}
    wrong = true.with_branch_losses(dict.fromkeys(ends, 1e-6))
    found = plan_with_branches_together(groups, wrong, planner, losses.without)
    first = planner(wrong)
    gone = [ends[group.name] for group in first.groups if not group.kept]
    assert gone
    assert planner.calls > 2, "planned again, and once by this test"
    total = reckoned(found, true) + (found.branches.together_nats if found.branches else 0.0)
    assert total <= reckoned(first, true) + losses.without(gone) + 1e-9
    if found.branches:
        assert found.branches.together_nats == pytest.approx(losses.without(found.branches.names))


def test_a_plan_keeps_what_was_measured(groups, planner, tmp_path):
    found = plan_with_branches_together(groups, doctored(groups, 0.01), planner, lambda names: 0.01)
    found.save(tmp_path / "plan.json")
    again = PruningPlan.load(tmp_path / "plan.json")
    assert again == found
    assert again.branches.names
    planner(doctored(groups, 0.01)).save(tmp_path / "old.json")
    assert PruningPlan.load(tmp_path / "old.json").branches is None
