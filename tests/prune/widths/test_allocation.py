import itertools

import numpy as np
import pytest

from secateur.prune.widths.allocation import allocate


def chain(seed, groups=4, steps=5):
    """A chain of layers: cost is the sum of products of neighbouring widths; losses fall with width, not always smoothly."""
    generator = np.random.default_rng(seed)
    names = [f"g{index}" for index in range(groups)]
    choices = {name: [8 * step for step in range(steps, 0, -1)] for name in names}
    factors = generator.uniform(0.5, 3, groups + 1)
    losses = {}
    for name in names:
        drops = generator.exponential(1.0, steps - 1) * generator.uniform(0.1, 4)
        losses[name] = dict(zip(choices[name], [0.0, *np.cumsum(drops)], strict=True))

    def used(kept):
        widths = [3, *(kept[name] for name in names), 10]
        return float(sum(f * a * b for f, a, b in zip(factors, widths, widths[1:], strict=False)))

    def saved(kept, changes):
        return used(kept) - used({**kept, **changes})

    neighbours = {name: names[max(0, index - 1) : index + 2] for index, name in enumerate(names)}
    loss = {name: losses[name].__getitem__ for name in names}
    return names, choices, loss, used, saved, neighbours


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("share", [0.75, 0.5, 0.3])
def test_close_to_brute_force_and_within_the_limit(seed, share):
    names, choices, loss, used, saved, neighbours = chain(seed)
    limit = share * used({name: choices[name][0] for name in names})
    kept = allocate(choices, loss, used, saved, neighbours, limit)
    assert used(kept) <= limit
    total = sum(loss[name](kept[name]) for name in names)
    best = min(
        sum(loss[name](width) for name, width in zip(names, widths, strict=True))
        for widths in itertools.product(*(choices[name] for name in names))
        if used(dict(zip(names, widths, strict=True))) <= limit
    )
    assert total <= 1.1 * best + 1e-9


def test_brute_force_is_met_exactly_in_most_cases():
    exact = 0
    for seed in range(40):
        names, choices, loss, used, saved, neighbours = chain(seed, groups=3, steps=6)
        limit = 0.5 * used({name: choices[name][0] for name in names})
        kept = allocate(choices, loss, used, saved, neighbours, limit)
        best = min(
            sum(loss[name](width) for name, width in zip(names, widths, strict=True))
            for widths in itertools.product(*(choices[name] for name in names))
            if used(dict(zip(names, widths, strict=True))) <= limit
        )
        exact += sum(loss[name](kept[name]) for name in names) <= best + 1e-9
    assert exact >= 34


def test_a_limit_out_of_reach_gives_the_narrowest():
    names, choices, loss, used, saved, neighbours = chain(0)
    assert allocate(choices, loss, used, saved, neighbours, 1.0) == dict.fromkeys(names, 8)


def test_nothing_is_cut_without_need():
    names, choices, loss, used, saved, neighbours = chain(0)
    whole = {name: choices[name][0] for name in names}
    assert allocate(choices, loss, used, saved, neighbours, used(whole)) == whole
