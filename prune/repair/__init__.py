"""Repairs of a cut network: without labels, and by fine-tuning.

In: the original, the cut network and calibration images. Out: the same cut network with other weights, and a report of what
each step changed. Open ``repair.py`` first.
"""
