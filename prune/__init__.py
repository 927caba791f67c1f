"""Scores, costs and a budget to a smaller network that works.

In: a network, its channel groups and kernel scores. Out: a :class:`~secateur.prune.plan.PruningPlan`, and the network cut
by it, repaired and fine-tuned. Open ``plan.py`` first, then ``surgery.py``.
"""
