"""Budgets that are found by trying: the smallest network within a drop, and one within a latency.

In: a function that tries a fraction. Out: the tries and the best of them. Pure: no network, no clock. Open ``by_drop.py``
first.
"""
