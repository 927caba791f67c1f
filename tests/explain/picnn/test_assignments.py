import itertools

import pytest
import torch
from scipy import stats

from secateur.explain.picnn.assignments import (
    GATE_OPEN,
    make_assignment,
    sample_bernoulli,
    sample_categorical,
    straight_through,
)

DRAWS = 100_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def fits(counts, expected):
    """No evidence against the expected counts at one in a thousand."""
    return stats.chisquare(counts, expected).pvalue > 1e-3


@pytest.mark.parametrize("probability", [0.02, 0.1, 0.5, 0.77, 0.99])
def test_masks_follow_bernoulli(probability):
    drawn = sample_bernoulli(torch.full((DRAWS,), probability), generator())
    ones = int(drawn.sum())
    assert set(drawn.tolist()) <= {0.0, 1.0}
    assert fits([ones, DRAWS - ones], [DRAWS * probability, DRAWS * (1 - probability)])


def test_masks_of_filters_are_independent():
    drawn = sample_bernoulli(torch.tensor([0.3, 0.6]).expand(DRAWS, 2), generator(1)).long()
    counts = torch.bincount(2 * drawn[:, 0] + drawn[:, 1], minlength=4).tolist()
    assert fits(counts, [DRAWS * share for share in (0.7 * 0.4, 0.7 * 0.6, 0.3 * 0.4, 0.3 * 0.6)])


def test_certain_masks_are_certain():
    drawn = sample_bernoulli(torch.tensor([0.0, 1.0]).expand(DRAWS, 2), generator())
    assert drawn.mean(0).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("shares", [[0.5, 0.3, 0.15, 0.05], [0.0, 0.2, 0.0, 0.8], [0.25] * 4])
def test_pseudo_labels_follow_the_categorical_distribution(shares):
    drawn = sample_categorical(torch.tensor(shares).expand(DRAWS, 4), generator(2))
    counts = drawn.sum(0)
    assert torch.equal(drawn.sum(1), torch.ones(DRAWS))
    kept = [index for index, share in enumerate(shares) if share]
    assert all(counts[index] == 0 for index in range(4) if index not in kept)
    assert fits([float(counts[index]) for index in kept], [DRAWS * shares[index] for index in kept])


def test_a_thousand_classes_whose_shares_do_not_quite_sum_to_one():
    shares = torch.full((20_000, 1000), 1 / 1000) * (1 - 1e-6)
    counts = sample_categorical(shares, generator(3)).sum(0)
    assert float(counts.sum()) == 20_000
    assert fits(counts.tolist(), [20.0] * 1000)


@pytest.mark.parametrize("kind", ["bernoulli", "gumbel"])
def test_clusters_have_each_filter_with_the_probability_of_the_matrix(kind):
    assignment = make_assignment(kind, 3, 4, seed=5)
    classes = torch.arange(3).repeat_interleave(DRAWS)
    drawn = assignment.cluster(classes, generator(4)).reshape(3, DRAWS, 4)
    ones = drawn.sum(1)
    for label, filter_ in itertools.product(range(3), range(4)):
        share, count = float(assignment.probabilities[label, filter_].detach()), float(ones[label, filter_])
        assert fits([count, DRAWS - count], [DRAWS * share, DRAWS * (1 - share)])


def test_a_filter_has_one_class_a_draw_by_gumbels_masks():
    torch.manual_seed(0)
    assignment = make_assignment("gumbel", 3, 4, seed=5)
    masks = assignment.training_mask(torch.eye(3)[torch.zeros(20_000, dtype=torch.long)]).detach()
    hard = masks.round()
    assert float((masks - hard).abs().mean()) < 0.01, "at this temperature draws are all but hard"
    for filter_ in range(4):
        count, share = float(hard[:, filter_].sum()), float(assignment.probabilities[0, filter_].detach())
        assert fits([count, 20_000 - count], [20_000 * share, 20_000 * (1 - share)])


def multilinear(z, pairs, single):
    """A loss that is linear in every mask alone: singles, pairs and one product of all."""
    return z @ single + torch.einsum("...i,ij,...j->...", z, pairs, z) + 0.7 * z.prod(-1)


def test_for_a_multilinear_loss_the_gradient_is_that_of_the_expectation():
    """Over all 2^n masks, weighted by their probability: the mean of what autograd gives is the slope of the expectation, which
    finite differences give from the masks' probabilities alone."""
    count = 5
    single = torch.randn(count, generator=generator(1), dtype=torch.float64)
    pairs = torch.randn(count, count, generator=generator(2), dtype=torch.float64).triu(1)
    probabilities = torch.rand(count, generator=generator(3), dtype=torch.float64) * 0.8 + 0.1
    masks = torch.tensor(list(itertools.product([0.0, 1.0], repeat=count)), dtype=torch.float64)

    def weights(p):
        return torch.where(masks == 1, p, 1 - p).prod(1)

    def expectation(p):
        return float(weights(p) @ multilinear(masks, pairs, single))

    p = probabilities.clone().requires_grad_(True)
    drawn = straight_through(masks, p.expand(len(masks), count))
    (gradient,) = torch.autograd.grad(weights(probabilities) @ multilinear(drawn, pairs, single), p)
    step = 1e-5
    for index in range(count):
        shift = torch.zeros(count, dtype=torch.float64)
        shift[index] = step
        slope = (expectation(probabilities + shift) - expectation(probabilities - shift)) / (2 * step)
        assert float(gradient[index]) == pytest.approx(slope, abs=1e-8)


def test_sampled_gradients_go_to_that_mean():
    """Within four standard errors of the closed form, a multilinear loss's value at the probabilities."""
    count = 5
    single = torch.randn(count, generator=generator(1))
    pairs = torch.randn(count, count, generator=generator(2)).triu(1)
    p = torch.linspace(0.1, 0.9, count).requires_grad_(True)
    (expected,) = torch.autograd.grad(multilinear(p, pairs, single), p)
    each = p.detach().expand(DRAWS, count).clone().requires_grad_(True)
    (gradients,) = torch.autograd.grad(multilinear(sample_bernoulli(each, generator(6)), pairs, single).sum(), each)
    error = gradients.std(0) / DRAWS**0.5
    assert bool(((gradients.mean(0) - expected).abs() < 4 * error + 1e-6).all())


def test_for_any_other_loss_the_gradient_is_the_mean_of_its_slope_at_the_draws():
    p = torch.linspace(0.2, 0.8, 4).requires_grad_(True)

    def loss(z):
        return (z @ torch.tensor([1.0, -2.0, 0.5, 3.0])).exp() + (z.sum(-1) - 1.5).pow(4)

    drawn = sample_bernoulli(p.expand(1000, 4), generator(7))
    (gradient,) = torch.autograd.grad(loss(drawn).mean(), p)
    leaf = drawn.detach().requires_grad_(True)
    (slopes,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    assert torch.allclose(gradient, slopes.mean(0), rtol=1e-5)


def test_pseudo_labels_pass_gradients_on_to_the_predictions():
    """A loss that is linear in the one-hot label: the slope of its expectation is the loss at each class."""
    scores = torch.tensor([0.2, 0.5, 0.3])
    cost = torch.tensor([1.0, -2.0, 4.0])
    p = scores.expand(500, 3).clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad((sample_categorical(p, generator(8)) @ cost).sum(), p)
    assert torch.equal(gradient, cost.expand(500, 3))


@pytest.mark.parametrize("kind", ["bernoulli", "gumbel", "csg"])
def test_gradients_reach_the_matrix_and_the_labels(kind):
    torch.manual_seed(0)
    assignment = make_assignment(kind, 3, 6)
    classes = torch.eye(3).requires_grad_(True)
    weights = torch.tensor([1.0, -2.0, 0.5]).unsqueeze(1)  # a softmax's column sums to one, whatever its parameters
    (assignment.training_mask(classes) * weights).sum().backward()
    assert float(classes.grad.abs().sum()) > 0
    assert any(float(parameter.grad.abs().sum()) > 0 for parameter in assignment.parameters())


def test_columns_of_the_matrix_sum_to_one_and_the_codes_start_is_flatter():
    plain, softened = (make_assignment("bernoulli", 10, 30, initial=start) for start in ("normal", "softmax"))
    for assignment in (plain, softened):
        assert torch.allclose(assignment.probabilities.sum(0), torch.ones(30), atol=1e-6)
    assert float(softened.probabilities.detach().std()) < 0.2 * float(plain.probabilities.detach().std())
    assert torch.allclose(softened.correspondence, plain.correspondence.softmax(0))


def test_an_untrained_matrix_puts_one_in_ten_filters_into_a_cluster():
    assignment = make_assignment("std", 10, 640)
    assert not assignment.learned
    share = assignment.cluster(torch.arange(10).repeat(50), generator()).mean()
    assert float(share) == pytest.approx(0.1, abs=0.01)


def test_gates_stay_within_bounds_with_one_open_class_a_filter_and_pay_for_more():
    gates = make_assignment("csg", 3, 2, gate_penalty=2.0)
    with torch.no_grad():
        gates.gates.copy_(torch.tensor([[3.0, -1.0], [1.5, 0.0], [-2.0, 0.0]]))
    gates.project()
    assert gates.gates.tolist() == [[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]
    with torch.no_grad():
        gates.gates.copy_(torch.tensor([[1.0, 0.2], [0.6, 0.4], [0.0, 0.0]]))
    gates.project()
    assert torch.allclose(gates.gates, torch.tensor([[1.0, 0.5], [0.6, 1.0], [0.0, 0.0]]))
    assert float(gates.penalty().detach()) == pytest.approx(2.0 * (3.1 - 2) / 2)
    assert gates.cluster(torch.tensor([0, 1])).tolist() == [[1.0, 0.0], [1.0, 1.0]]
    assert GATE_OPEN == 0.5
