"""The stages of a run, one file each: the inputs that determine the result, its computation, and how it is loaded again.

In: a run's :class:`~secateur.pipeline.inputs.Inputs` and the results of earlier stages. Out: a
:class:`~secateur.pipeline.stages.store.Stage` for the store to run or reuse. The main job and the single commands share them.
Open ``store.py`` first, then ``ranking.py``.
"""
