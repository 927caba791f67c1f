"""How far scores can be trusted: ablation as the truth, faithfulness curves, randomisation checks, controls for graphs.

In: a network, images and scores. Out: correlations, areas and accuracies. Mostly proofs of claims that the benchmarks run;
the consensus and the ranker ``car`` use ``curves.py`` and ``ablation.py``. Open ``curves.py`` first.
"""
