from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from secateur.common.errors import InputError, UsageError
from secateur.explain.agic.encoder import Embeddings
from secateur.explain.agic.keep_masks import keep_masks
from secateur.explain.faithfulness.readout_scoring import ScoringSettings, kernel_scores, train_scoring

NODES, KINDS = {"a": 10, "b.conv": 12, "join": 10}, {"a": "kernel", "b.conv": "kernel", "join": "join"}
NEEDED, CONSTANT = [0, 3, 7, 10, 15, 20], 5  # the first layer's 0, 3 and 7, the second's 0, 5 and 10
BRIEF = ScoringSettings(epochs=30)


@pytest.fixture(scope="module")
def embeddings():
    """Noise around what each kernel usually is; the needed kernels tell the class besides, and one never varies."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(150) % 3
    usual, directions = torch.randn(32, 8, generator=generator), torch.randn(3, 8, generator=generator)
    values = usual + 0.5 * torch.randn(150, 32, 8, generator=generator)
    values[:, NEEDED] += 2 * directions[labels].unsqueeze(1)
    values[:, CONSTANT] = usual[CONSTANT]
    return Embeddings(values, NODES, KINDS, labels, labels, 8.0 * F.one_hot(labels, 3))


def flat(layers):
    return torch.cat(list(layers.values()), -1)


@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0, 50.0])
def test_the_mean_of_a_mask_is_the_keep_rate(spread):
    scores = spread * torch.randn(9, 23, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rates = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    masks = keep_masks(scores, rates, (1, 4, 18), 0.5)
    for part in masks.split((1, 4, 18), 1):
        assert torch.allclose(part.mean(1), rates, atol=1e-9)
        assert bool(((part >= 0) & (part <= 1)).all())


def test_gradients_of_a_mask_are_those_of_finite_differences():
    scores = torch.randn(3, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    rates = torch.tensor([0.1, 0.5, 0.85], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: keep_masks(s, rates, (4, 5), 0.7), scores, atol=1e-5)


def test_hard_masks_have_finite_gradients():
    scores = torch.tensor([[-1e4, -9e3, 9e3, 1e4]]).repeat(9, 1).requires_grad_()
    masks = keep_masks(scores, torch.linspace(0.1, 0.9, 9), (4,), 0.5)
    (gradient,) = torch.autograd.grad(masks[:, 1].sum(), scores)
    assert torch.allclose(masks.mean(1), torch.linspace(0.1, 0.9, 9), atol=1e-3)
    assert torch.allclose(masks[4], torch.tensor([0.0, 0.0, 1.0, 1.0]), atol=1e-5)
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("target", ["output", "label"])
@pytest.mark.parametrize("readout", ["mean", "kernels"])
@pytest.mark.parametrize("offsets", [False, True])
def test_kernels_that_tell_the_class_are_kept(embeddings, target, readout, offsets):
    network = train_scoring(embeddings, replace(BRIEF, target=target, readout=readout, offsets=offsets))
    layers, per_class = kernel_scores(network, embeddings)
    assert {name: len(scores) for name, scores in layers.items()} == {"a": 10, "b.conv": 12}
    scores = flat(layers)
    others = [kernel for kernel in range(22) if kernel not in NEEDED]
    assert float(scores[NEEDED].min()) > float(scores[others].max())
    assert float(scores[NEEDED].mean()) > 0.7
    assert torch.allclose(flat(per_class).mean(0), scores, atol=1e-6)  # there are as many graphs of each class


def test_the_output_counts_or_the_label(embeddings):
    """Some kernels tell what the network says, others what the image is; the two have nothing to do with each other."""
    generator = torch.Generator().manual_seed(1)
    said = torch.arange(150).div(3, rounding_mode="floor") % 3
    directions = torch.randn(2, 3, 8, generator=generator)
    values = torch.randn(32, 8, generator=generator) + 0.5 * torch.randn(150, 32, 8, generator=generator)
    values[:, [0, 3, 10]] += 2 * directions[0, said].unsqueeze(1)
    values[:, [7, 15, 20]] += 2 * directions[1, embeddings.labels].unsqueeze(1)
    divided = replace(embeddings, values=values, outputs=8.0 * F.one_hot(said, 3))
    for target, needed, other in (("output", [0, 3, 10], [7, 15, 20]), ("label", [7, 15, 20], [0, 3, 10])):
        scores = flat(kernel_scores(train_scoring(divided, replace(BRIEF, target=target)), divided)[0])
        assert float(scores[needed].min()) > float(scores[other].max()) + 0.2


def test_scores_by_hand(embeddings):
    network = train_scoring(embeddings, replace(BRIEF, epochs=2, batch_size=32, offsets=True))
    rows = embeddings.labels == 1
    values = embeddings.values[rows][:, :22]
    whole = embeddings.values[:, :22]
    standardised = (values - whole.mean((0, 1))) / whole.std((0, 1), correction=0)
    with torch.no_grad():
        raw = (network.score(standardised).squeeze(2) + network.offsets).double()
    kept = torch.zeros(50, 22, dtype=torch.float64)
    for rate in (0.25, 0.5):
        kept += keep_masks(raw, torch.full((50,), rate, dtype=torch.float64), (10, 12), 0.5) / 2
    layers, per_class = kernel_scores(network, embeddings, rates=(0.25, 0.5))
    assert torch.allclose(flat(per_class)[1].double(), kept.mean(0), atol=1e-4)
    for scores in layers.values():
        assert float(scores.mean()) == pytest.approx(0.375, abs=1e-5)


def test_what_is_not_kept_counts_as_usual(embeddings):
    """Were everything replaced by its mean embedding, all images would look alike; and joins are read only when asked for."""
    network = train_scoring(embeddings, replace(BRIEF, epochs=1))
    values = network.readout.take(embeddings, torch.arange(4))
    usual = embeddings.values[:, :22].mean(0).expand(4, 22, 8)
    rates = torch.full((4,), 0.5)
    with torch.no_grad():
        nothing = network.readout(values, torch.zeros(4, 22))
        assert torch.allclose(nothing, network.readout(usual), atol=1e-5)
        assert not torch.allclose(network(values, rates), network(usual, rates), atol=1e-3)
    whole = train_scoring(embeddings, replace(BRIEF, epochs=1, all_nodes=True))
    assert whole.readout.take(embeddings, torch.arange(4)).shape == (4, 32, 8)
    assert set(kernel_scores(whole, embeddings)[0]) == {"a", "b.conv"}


def test_half_precision_is_enough(embeddings):
    half = replace(embeddings, values=embeddings.values.half())
    whole, rounded = (flat(kernel_scores(train_scoring(e, BRIEF), e)[0]) for e in (embeddings, half))
    assert torch.allclose(whole, rounded, atol=0.05)


def test_the_same_seed_gives_the_same_scores(embeddings):
    told = []
    settings = [replace(BRIEF, epochs=2, seed=seed) for seed in (0, 0, 1)]
    found = [
        flat(kernel_scores(train_scoring(embeddings, one, progress=lambda *step: told.append(step)), embeddings)[0])
        for one in settings
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert told == [(1, 2), (2, 2)] * 3


def test_wrong_settings_and_graphs_without_kernels_are_refused(embeddings):
    for setting in ({"target": "logit"}, {"temperature": 0.0}, {"score_hidden": 0}, {"readout": "sum"}):
        with pytest.raises(UsageError, match=next(iter(setting))):
            ScoringSettings(**setting)
    with pytest.raises(InputError, match="kernel"):
        train_scoring(replace(embeddings, kinds=dict.fromkeys(NODES, "join")), replace(BRIEF, all_nodes=True))
