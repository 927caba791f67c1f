"""All settings of a run: the recipe, its TOML file, and the command that repeats the run.

In: options and ``recipe.toml``. Out: a validated :class:`~secateur.pipeline.recipe.recipe.Recipe`. Its sections are defined in
the settings modules of the packages that use them. Open ``recipe.py`` first.
"""
