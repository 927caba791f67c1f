"""Budgets that are met by trying: the smallest network within a drop in accuracy, and a network within a latency.

In: a function that tries a fraction. Out: all tries and the best of them. Pure: no network is run, nothing is timed. Open
``by_drop.py`` first, then ``by_latency.py``.
"""
