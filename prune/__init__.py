"""Pruning: a plan to a budget, the cut, and the repair of the smaller network.

In: a network, its channel groups and kernel scores. Out: a :class:`~secateur.prune.plan.PruningPlan`, and the network cut by
it, repaired and fine-tuned. Open ``plan.py`` first, the result; then ``planning.py``, which makes it, ``surgery.py``, which
applies it, and ``repair/repair.py``.
"""
