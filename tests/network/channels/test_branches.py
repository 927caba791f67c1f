"""Whole residual branches: what they are, what cutting one means, what it costs, and that everything goes on from there."""

import itertools
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from odd_networks import Parallel
from torch import nn

from secateur.common.errors import InputError
from secateur.explain.unit_scores import UnitScores
from secateur.export.onnx.model import export_onnx
from secateur.network.channels.cut import apply_cut, cut_of, rest_of_cut
from secateur.network.channels.follow import find_groups
from secateur.network.graph.stand_ins import Constant
from secateur.network.load import load_model
from secateur.network.settings import ModelSettings
from secateur.prune import surgery
from secateur.prune.cost import measure_cost
from secateur.prune.planning import plan_pruning
from secateur.prune.reasons import explain_layer
from secateur.prune.repair.reconstruction import reconstruct
from secateur.prune.repair.repair import repair
from secateur.prune.settings import BudgetSettings
from secateur.prune.widths.allocation import allocate
from secateur.prune.widths.sensitivity import Sensitivity


def branches_of(groups):
    found = {}
    for group in groups:
        if group.branch:
            found.setdefault(group.branch, []).append(group)
    return found


@pytest.fixture
def subject(tiny, large, network_of):
    def build(name):
        return network_of(tiny("padded")) if name == "padded" else network_of(large(name), (3, 32, 32), 5)

    return build


@pytest.fixture
def without(random_units):
    """A network without whole branches, as a cut leaves it."""

    def build(network, names, groups=None):
        groups = groups or find_groups(network.module, network.example())
        removed = {group.name: range(group.units) for group in groups if group.branch in names}
        cut = cut_of(groups, removed)
        return replace(network, module=apply_cut(network.module, cut, network.example(1)).eval(), cuts=(cut,))

    return build


@pytest.mark.parametrize(
    ("name", "count"),
    [("padded", 3), ("resnet18", 8), ("resnext", 4), ("mobilenet_v2", 10), ("efficientnet_b0", 9), ("vgg", 0),
     ("densenet121", 0)],
)  # fmt: skip
def test_as_many_branches_as_the_architecture_has(subject, name, count):
    network = subject(name)
    assert len(branches_of(find_groups(network.module, network.example()))) == count


@pytest.mark.parametrize("name", ["padded", "resnet18", "mobilenet_v2", "efficientnet_b0"])
def test_cutting_a_branch_is_leaving_its_last_layer_unfed(subject, without, name):
    """By hooks on the original: the last layer gives its bias everywhere. Costs are counted on what is really there."""
    network = subject(name)
    groups = find_groups(network.module, network.example())
    example, costs = network.example(3), measure_cost(network)
    for last in list(branches_of(groups))[:4]:
        small = without(network, {last}, groups)
        layer = network.module.get_submodule(last)

        def unfed(module, inputs, output):
            bias = torch.zeros(output.shape[1]) if module.bias is None else module.bias
            return bias.view(1, -1, 1, 1).expand_as(output).clone()

        handle = layer.register_forward_hook(unfed)
        with torch.no_grad():
            wanted = network.logits(example)
        handle.remove()
        with torch.no_grad():
            assert torch.allclose(small.logits(example), wanted, atol=1e-5 * float(wanted.abs().max()) + 1e-6)
        assert isinstance(small.module.get_submodule(last), Constant)
        assert costs.of_cut(small.cuts[-1]) == measure_cost(small).of({})
        assert measure_cost(small).of({}).macs < costs.of({}).macs


def test_a_branch_goes_whole_or_not_at_all(subject):
    network = subject("resnext")
    groups = find_groups(network.module, network.example())
    inside = branches_of(groups)["layer1.0.conv3"]
    assert len(inside) == 2
    with pytest.raises(InputError, match=r"whole branch up to layer1\.0\.conv3 must go"):
        cut_of(groups, {inside[0].name: range(inside[0].units)})
    stream = next(group for group in groups if group.stream and not group.locked)
    with pytest.raises(InputError, match="at least one must stay"):
        cut_of(groups, {stream.name: range(stream.units)})


def test_reconstruction_gives_the_join_its_average_back(subject, without, noise_images):
    network, images = subject("padded"), noise_images(60)
    small = without(network, {"layer2.0.conv2"})
    fixed, fits, _ = reconstruct(network, small, images)
    assert next(fit for fit in fits if fit.layer == "layer2.0.conv2").form == "constant"
    seen = {}

    def keep(name):
        return lambda module, inputs, output: seen.__setitem__(name, output)

    batch = torch.cat([batch for batch, _ in images.batches(60)])
    means = []
    for net in (network, fixed):
        handles = [net.module.get_submodule("layer2.0.bn2").register_forward_hook(keep("branch"))]
        with torch.no_grad():
            net.logits(batch)
        handles[0].remove()
        means.append(seen["branch"].mean((0, 2, 3)))
    assert torch.allclose(means[0], means[1], atol=1e-4)


@pytest.mark.parametrize("kind", ["mean", "bn", "reconstruct"])
def test_repairs_take_networks_without_branches(subject, without, noise_images, kind):
    for name in ("padded", "efficientnet_b0"):
        network = subject(name)
        images = noise_images(24) if name == "padded" else noise_images(24, (3, 32, 32), 5)
        last = next(iter(branches_of(find_groups(network.module, network.example()))))
        fixed, _ = repair(network, without(network, {last}), images, kind)
        with torch.no_grad():
            assert torch.isfinite(fixed.logits(fixed.example(4))).all()


def test_streaming_in_no_memory_gives_the_same_fits(subject, noise_images, random_units):
    network, images = subject("padded"), noise_images(40)
    groups = find_groups(network.module, network.example())
    cut = cut_of(groups, random_units(groups, 0, 0.4))
    small = replace(network, module=apply_cut(network.module, cut, network.example(1)).eval(), cuts=(cut,))
    stored, *_ = reconstruct(network, small, images, batch_size=16)
    anew, *_ = reconstruct(network, small, images, batch_size=16, memory_bytes=0)
    for one, two in zip(stored.module.state_dict().values(), anew.module.state_dict().values(), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_allocation_with_branches_is_close_to_brute_force(seed):
    """Three branches of two groups each on a stream; without the end of a branch the rest of it goes and loses nothing more."""
    generator = np.random.default_rng(seed)
    branches = {f"end{i}": (f"inner{i}",) for i in range(3)}
    names = [name for end, inner in branches.items() for name in (*inner, end)]
    choices = {name: [32, 24, 16, 8, *([0] if name in branches else [])] for name in names}
    losses = {}
    for name in names:
        drops = generator.exponential(1.0, len(choices[name]) - 1) * generator.uniform(0.2, 2)
        losses[name] = dict(zip(choices[name], [0.0, *np.cumsum(drops)], strict=True))

    def used(kept):
        return float(
            sum(16 * kept[i] + 9 * kept[i] * kept[e] + 16 * kept[e] for e, (i,) in branches.items() if kept[e])
        )

    def total(kept):
        return sum(
            losses[end][kept[end]] + (losses[inner][kept[inner]] if kept[end] else 0.0)
            for end, (inner,) in branches.items()
        )

    limit = 0.45 * used(dict.fromkeys(names, 32))
    loss = {name: losses[name].__getitem__ for name in names}
    kept = allocate(
        choices, loss, used, lambda kept, changes: used(kept) - used({**kept, **changes}),
        dict.fromkeys(names, names), limit, branches,
    )  # fmt: skip
    assert used(kept) <= limit
    assert all(kept[inner] == 0 for end, (inner,) in branches.items() if kept[end] == 0)
    best = min(
        total(candidate)
        for widths in itertools.product(*(choices[name] for name in names))
        if used(candidate := dict(zip(names, widths, strict=True))) <= limit
    )
    assert total(kept) <= 1.15 * best + 1e-9


@pytest.fixture
def planned(networks_file):
    """The padded network, a plan that takes its second branch whole, and its scores."""
    network = load_model(ModelSettings(model=f"{networks_file}:padded"))
    groups = find_groups(network.module, network.example())
    scores, curves = {}, {}
    for group in (group for group in groups if not group.locked):
        scores[group.name] = UnitScores("seeded", torch.arange(group.units, dtype=torch.float64), (group.name,))
        worth = 1e-6 if group.branch == "layer2.0.conv2" else 10.0
        zero = [(0, 1e-6 if worth < 1 else 50.0)] if group.branch else []
        curves[group.name] = (*zero, (max(1, group.units // 4), worth), (group.units, 0.0))
    plan = plan_pruning(groups, scores, measure_cost(network), BudgetSettings(macs=0.75), Sensitivity(curves, 1, 1))
    return network, groups, plan


def test_a_plan_may_take_a_branch_and_be_read_and_explained(planned, tmp_path):
    network, groups, plan = planned
    gone = next(group for group in plan.groups if group.name == "layer2.0.conv1")
    assert gone.kept == 0
    assert plan.after.macs <= 0.75 * plan.before.macs
    rows = explain_layer(plan, groups, "layer2.0.conv1")
    assert all(not stays and "whole branch" in why for _, _, stays, why in rows)
    small = surgery.cut(network, plan)
    with torch.no_grad():
        small.module.get_submodule("layer2.0.conv2").bias.uniform_(-1, 1)
    surgery.save(small, plan, tmp_path)
    again = load_model(str(tmp_path))
    with torch.no_grad():
        assert torch.equal(again.logits(again.example(3)), small.logits(small.example(3)))
    found = export_onnx(small, tmp_path / "model.onnx")
    kinds = [node.op_type for node in onnx.load(found.path).graph.node]
    assert "Expand" not in kinds
    assert "BatchNormalization" not in kinds
    session = onnxruntime.InferenceSession(found.path, providers=["CPUExecutionProvider"])
    images = small.example(5, seed=3)
    with torch.no_grad():
        wanted = small.logits(images).numpy()
    assert np.abs(session.run(None, {"images": images.numpy()})[0] - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_what_is_left_can_be_cut_again(planned):
    """The groups of the network without a branch, and a second cut named by the original's units."""
    network, groups, plan = planned
    small = surgery.cut(network, plan)
    later = {member.layer for group in find_groups(small.module, small.example()) for member in group.members}
    for group in (group for group in groups if not group.branch and not group.locked):
        makers = {member.layer for member in group.producers} - {"layer2.0.conv2"}  # a constant takes no part any more
        assert not makers or later & makers, group.name
    stream = next(group for group in groups if group.stream and not group.locked and group.units > 4)
    removed = {group.name: group.removed for group in plan.groups}
    removed[stream.name] = (0, 2)
    both = cut_of(groups, removed)
    at_once = apply_cut(network.module, both, network.example(1))
    in_turn = apply_cut(small.module, rest_of_cut(both, plan.cut), network.example(1))
    example = network.example(4)
    with torch.no_grad():
        assert torch.equal(at_once.eval()(example), in_turn.eval()(example))


def test_a_network_without_a_branch_trains(planned):
    network, _, plan = planned
    small = surgery.cut(network, plan).module.train()
    optimizer = torch.optim.SGD(small.parameters(), 0.01)
    for _ in range(3):
        loss = nn.functional.cross_entropy(small(network.example(8)), torch.arange(8) % 4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert torch.isfinite(small.eval()(network.example(4))).all()


def test_one_side_of_a_join_stays(shake, network_of):
    """Without both nothing of the image would reach the head."""
    groups = find_groups(shake(Parallel()), torch.zeros(2, 3, 12, 12))
    assert {group.branch for group in groups if group.branch} in ({"f.3", "h.3"}, {"g.3", "h.3"})
