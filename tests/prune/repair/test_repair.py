import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from secateur.common.errors import UsageError
from secateur.prune.repair.batch_norm import reestimate_norms
from secateur.prune.repair.repair import repair


@pytest.mark.parametrize("kind", ["mean", "bn"])
@pytest.mark.parametrize("name", ["padded", "gated"])
def test_no_label_is_read(tiny, network_of, noise_images, plan_for, name, kind):
    from secateur.prune.surgery import cut

    network, images = network_of(tiny(name)), noise_images(12)
    pruned = cut(network, plan_for(network, round_to=1))
    garbage = replace(images, labels=torch.full((12,), -(10**9)))
    states = [repair(network, pruned, given, kind)[0].module.state_dict() for given in (images, garbage)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("kind", ["none", "mean", "bn"])
@pytest.mark.parametrize("name", ["padded", "inverted", "plain"])
def test_both_networks_stay_as_they_are(tiny, network_of, noise_images, plan_for, name, kind):
    from secateur.prune.surgery import cut

    network = network_of(tiny(name))
    pruned = cut(network, plan_for(network, round_to=1))
    states = [copy.deepcopy(n.module.state_dict()) for n in (network, pruned)]
    repaired, report = repair(network, pruned, noise_images(12), kind)
    for given, state in zip((network, pruned), states, strict=True):
        assert state.keys() == given.module.state_dict().keys()
        assert all(torch.equal(value, given.module.state_dict()[key]) for key, value in state.items())
    after = repaired.module.state_dict()
    same = after.keys() == states[1].keys() and all(torch.equal(value, after[key]) for key, value in states[1].items())
    assert same == (kind == "none")
    assert not repaired.module.training
    if kind == "none":
        assert (report.compensated, report.reestimated) == ((), ())


def test_bn_repair_does_both(tiny, network_of, noise_images, plan_for):
    from secateur.prune.surgery import cut

    network, images = network_of(tiny("padded")), noise_images(12)
    pruned = cut(network, plan_for(network, round_to=1))
    seen = []
    repaired, report = repair(
        network, pruned, images, "bn", batch_size=5, progress=lambda done, total: seen.append((done, total))
    )
    norms = [name for name, child in pruned.module.named_modules() if isinstance(child, nn.BatchNorm2d)]
    assert list(report.reestimated) == norms
    by_mean, _ = repair(network, pruned, images, "mean")
    module = copy.deepcopy(by_mean.module)
    reestimate_norms(module, images, batch_size=5)
    x = network.example()
    assert torch.allclose(module(x), repaired.logits(x), atol=1e-6)
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_an_unknown_repair_is_refused(tiny, network_of, noise_images):
    network = network_of(tiny("chain"))
    with pytest.raises(UsageError, match="none, mean, bn"):
        repair(network, network, noise_images(4), "glue")


def test_labels_are_not_read_and_the_given_networks_stay(tiny, network_of, noise_images, cut_randomly):
    network = network_of(tiny("padded"))
    small = cut_randomly(network)
    images = noise_images(48)
    held = copy.deepcopy(network.module.state_dict()), copy.deepcopy(small.module.state_dict())
    results = []
    for labels in (images.labels, torch.zeros_like(images.labels)):
        poisoned = replace(images, labels=labels)
        fixed, report = repair(network, small, poisoned, "distill", validation=poisoned)
        assert [step.name for step in report.steps] == ["mean", "reconstruct", "bn", "distill"]
        results.append(fixed.module.state_dict())
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name
    for state, module in zip(held, (network.module, small.module), strict=True):
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_a_step_that_does_not_help_is_taken_back(tiny, network_of, noise_images, cut_randomly):
    """Divergences are measured again here; a kept step lowers them, and the result is the last kept one."""
    network = network_of(tiny("chain"))
    small = cut_randomly(network)
    images, validation = noise_images(64), noise_images(200, seed=7)
    fixed, report = repair(network, small, images, "reconstruct", validation=validation)

    def divergence(module):
        pixels = validation.pixels()
        with torch.no_grad():
            ours, theirs = (net(pixels).double().log_softmax(1) for net in (module, network.module))
        return float((theirs.exp() * (theirs - ours)).sum(1).mean())

    reached = divergence(small.module)
    for step in report.steps:
        assert step.divergence_before == pytest.approx(reached, rel=1e-3)
        assert step.kept == (step.divergence_after < step.divergence_before)
        if step.kept:
            reached = step.divergence_after
    assert divergence(fixed.module) == pytest.approx(reached, rel=1e-3)
