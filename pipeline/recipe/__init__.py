"""A run's settings as one: the recipe, its TOML file, and the command that makes the run again.

In: options and ``recipe.toml``. Out: a validated :class:`~secateur.pipeline.recipe.recipe.Recipe`. The sections themselves lie
beside what they steer, in the rooms' settings. Open ``recipe.py`` first.
"""
