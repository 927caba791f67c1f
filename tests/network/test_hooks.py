from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from secateur.common.errors import InputError
from secateur.network.hooks import frozen, masking_inputs, pick_logits, reading_activations, reading_inputs

SCORES, MAP = torch.randn(2, 5), torch.randn(2, 3, 4, 4)


Named = namedtuple("Named", "logits aux")


@pytest.mark.parametrize(
    "output",
    [
        SCORES,
        (SCORES, MAP),
        [SCORES],
        (MAP, SCORES),
        {"logits": SCORES, "aux": torch.zeros(2, 5)},
        {"features": MAP, "out": SCORES},
        {"only": SCORES},
        Named(SCORES, torch.zeros(2, 5)),
        SimpleNamespace(logits=SCORES),
        (None, SCORES),
    ],
    ids=lambda output: type(output).__name__,
)
def test_class_scores_are_found(output):
    assert pick_logits(output) is SCORES


def test_class_scores_of_a_convolutional_head_are_flattened():
    assert torch.equal(pick_logits(SCORES.view(2, 5, 1, 1)), SCORES)


@pytest.mark.parametrize("output", [MAP, torch.zeros(2), None, {}, "text", (MAP, MAP), {"features": MAP}])
def test_what_holds_no_class_scores_is_refused(output):
    with pytest.raises(InputError, match="images x classes"):
        pick_logits(output)


@pytest.fixture
def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def hooks(module):
    return sum(len(child._forward_hooks) + len(child._forward_pre_hooks) for child in module.modules())


@pytest.mark.parametrize(
    "manager",
    [
        lambda m: reading_activations(m, ["0", "4"]),
        lambda m: reading_inputs(m, ["0", "4"], lambda name, seen: None),
        lambda m: masking_inputs(m, {"0": torch.tensor([1])}),
        frozen,
    ],
)
def test_everything_is_undone_even_after_an_exception(module, manager):
    module[1].eval()
    module[4].weight.requires_grad_(False)
    before = (
        [child.training for child in module.modules()],
        [p.requires_grad for p in module.parameters()],
        hooks(module),
    )
    with pytest.raises(RuntimeError, match="channels"), manager(module):
        module(torch.randn(2, 4, 5, 5))
    after = (
        [child.training for child in module.modules()],
        [p.requires_grad for p in module.parameters()],
        hooks(module),
    )
    assert before == after


def test_activations_can_be_differentiated_with_frozen_parameters(module):
    x = torch.randn(2, 3, 5, 5)
    with frozen(module), reading_activations(module, ["1"]) as found:
        assert not module.training
        out = module(x)
        (gradient,) = torch.autograd.grad(out[:, 0].sum(), found["1"])
    wanted = (module[4].weight[0] / 9).view(1, 4, 1, 1).expand(2, 4, 3, 3)
    assert torch.allclose(gradient, wanted)
    assert torch.equal(found["1"][0].detach(), module[1](module[0](x)).detach())


def test_inputs_are_handed_over_at_every_call(module):
    seen = []
    x = torch.randn(2, 3, 5, 5)
    with reading_inputs(module, ["0"], lambda name, value: seen.append((name, value))):
        module(x)
        module(2 * x)
    assert [name for name, _ in seen] == ["0", "0"]
    assert torch.equal(seen[1][1], 2 * x)


def test_masked_inputs_are_zero_and_the_given_tensor_is_not(module):
    x, kept = torch.randn(2, 3, 5, 5), torch.tensor([1.0, 0, 1]).view(1, 3, 1, 1)
    before = x.clone()
    with masking_inputs(module, {"0": torch.tensor([1]), "4": torch.tensor([0, 3])}):
        got = module(x)
    hidden = module[:4](x * kept) * torch.tensor([0.0, 1, 1, 0])
    assert torch.allclose(got, module[4](hidden))
    assert torch.equal(x, before)


def test_class_scores_under_the_name_logits():
    scores = torch.randn(2, 5)
    assert pick_logits(SimpleNamespace(logits=scores)) is scores
