"""Networks that people bring go through the default ranking, sensitivities and repair."""

import pytest
import torch

import zoo_kinds
from secateur.explain.ranking import rank_kernels
from secateur.explain.scores import RankingTask
from secateur.explain.unit_scores import score_units
from secateur.network.channels.follow import find_groups
from secateur.network.load import load_model
from secateur.prune.cost import measure_cost
from secateur.prune.planning import plan_pruning
from secateur.prune.repair.repair import repair
from secateur.prune.settings import BudgetSettings
from secateur.prune.surgery import cut
from secateur.prune.widths.measure_sensitivity import measure_sensitivity

SOME = (
    "shuffle_unit",
    "non_local",
    "shifted_windows",
    "position_bias",
    "response_norm",
    "res2net_cascade",
    "mlp_mixer",
    "glu",
)
"""Selections, products that no layer reads, windows as images of their own, means over channels, layers over places."""
REST = sorted(set(zoo_kinds.KINDS) - set(SOME) - {"dropout_always", "scales_by_a_value"} - set(zoo_kinds.LAZY))


@pytest.mark.parametrize("name", [*SOME, *(pytest.param(name, marks=pytest.mark.long) for name in REST)])
def test_the_default_plan_is_made_and_repaired(name, noise_images):
    network = load_model(f"{zoo_kinds.__file__}:{name}")
    classes = network.logits(network.example()).shape[1]
    images = noise_images(24, network.input_shape, classes)
    groups = find_groups(network.module, network.example())
    units = score_units(groups, rank_kernels(RankingTask(network, images), "gap"))
    losses = measure_sensitivity(network, groups, units, images)
    assert set(losses.curves) == {group.name for group in groups if not group.locked}
    plan = plan_pruning(groups, units, measure_cost(network), BudgetSettings(macs=0.7), losses)
    assert plan.missed == ""
    repaired, _ = repair(network, cut(network, plan), images, "reconstruct")
    with torch.no_grad():
        assert repaired.logits(network.example()).isfinite().all()


def test_units_that_only_products_read_lose_what_their_masks_do(noise_images):
    network = load_model(f"{zoo_kinds.__file__}:non_local")
    images = noise_images(24, network.input_shape, 10)
    groups = find_groups(network.module, network.example())
    (group,) = [group for group in groups if group.name == "middle.theta"]
    assert not group.consumers
    assert not group.locked
    units = score_units(groups, rank_kernels(RankingTask(network, images), "magnitude"))
    found = measure_sensitivity(network, groups, units, images)
    judged = images.subset(torch.arange(12, 24)).pixels()
    kept, loss = found.curves[group.name][0]
    gone = units[group.name].values.argsort(stable=True).tolist()[: group.units - kept]
    with torch.no_grad():
        wanted = network.logits(judged).double().log_softmax(1)
        small = network.copy()
        for member in group.producers:
            layer = small.module.get_submodule(member.layer)
            for unit in gone:
                layer.weight[list(member.channels[unit])] = 0
                layer.bias[list(member.channels[unit])] = 0
        ours = small.logits(judged).double().log_softmax(1)
    assert loss == pytest.approx(float((wanted.exp() * (wanted - ours)).sum(1).mean()), rel=2e-2, abs=1e-7)
