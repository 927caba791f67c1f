"""Repair of a pruned network: without labels, or by fine-tuning.

In: the original, the pruned network and calibration images. Out: a repaired copy of the pruned network, and a report of what
each step changed. Open ``repair.py`` first, which takes the steps: ``mean_shift.py``, ``reconstruction.py`` with the fits of
``layer_fits.py``, ``batch_norm.py`` and ``distillation.py``; ``judging.py`` measures whether a step helped. ``fine_tune.py``
needs labels.
"""
