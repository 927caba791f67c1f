"""How wide every group stays under a budget.

In: channel groups, unit scores and measured losses. Out: the number of units that each group keeps. Open ``width_book.py``
first; ``sensitivity.py`` measures the losses, ``allocation.py`` is the arithmetic.
"""
