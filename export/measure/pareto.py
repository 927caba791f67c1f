"""The Pareto front: the candidates that no other dominates."""

from collections.abc import Sequence


def on_front(costs: Sequence[float | None], gains: Sequence[float]) -> list[bool | None]:
    """For each candidate, whether no other costs at most as much and gains at least as much, with one of the two strict.

    Candidates with equal cost and gain do not dominate each other. A cost of None was not measured: such a candidate gets None
    and dominates no other.
    """
    known = [(cost, gain) for cost, gain in zip(costs, gains, strict=True) if cost is not None]
    return [
        None
        if cost is None
        else not any(other <= cost and more >= gain and (other < cost or more > gain) for other, more in known)
        for cost, gain in zip(costs, gains, strict=True)
    ]
