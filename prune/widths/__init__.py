"""The width of every group under a budget.

In: channel groups, unit scores and measured losses. Out: the number of units that each group keeps. Open ``width_book.py``
first; ``allocation.py`` is its arithmetic. ``measure_sensitivity.py`` measures the losses, one group at a time
(``group_trial.py``) or whole branches (``branch_losses.py``), on the images of ``trial_images.py``, as a result in
``sensitivity.py``. ``branches_together.py`` plans again where branches lose more together than one by one;
``ranking_choice.py`` chooses among the rankings of a consensus.
"""
