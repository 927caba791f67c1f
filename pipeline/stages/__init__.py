"""The stages of a run, one file each: what decides the result, how it is worked on, how it is loaded again.

In: a run's :class:`~secateur.pipeline.inputs.Inputs` and the results of the stages before. Out: a
:class:`~secateur.pipeline.stages.store.Stage` for the store to run or reuse. The main job and the single commands share them.
Open ``store.py`` first, then ``ranking.py``.
"""
