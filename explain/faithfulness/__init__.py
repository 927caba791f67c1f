"""Faithfulness of scores: ablation as the ground truth, faithfulness curves, randomisation checks, controls for graphs.

In: a network, images and scores. Out: correlations, areas and accuracies. Most of it is used by the benchmarks only; the
consensus uses ``curves.py``, the ranker ``car`` is in ``ablation.py``. Open ``curves.py`` first.
"""
