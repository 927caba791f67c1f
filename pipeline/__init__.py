"""One run, from a recipe to a report; each command is a part of it.

In: a :class:`~secateur.pipeline.recipe.Recipe` and a run folder. Out: the files of the run and an exit code. Open
``prune_and_export.py`` first: it contains the whole run, in order.
"""
