"""Which kernels matter, and why: rankers, attributions and evidence.

In: a network and calibration images. Out: :class:`~secateur.explain.scores.KernelScores`, and the evidence behind them.
Open ``scores.py`` first, then ``ranking.py``; every method has a folder of its own.
"""
