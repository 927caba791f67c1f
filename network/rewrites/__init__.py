"""Networks made plain before anything looks at them: the same outputs, from operations whose channels can be followed and cut.

In: a user's module and an example. Out: a :class:`~secateur.network.rewrites.plain.Plain` network, the module itself where
nothing stands in the way, and what was rewritten. Open ``plain.py`` first; every other file is one kind of rewrite.
"""
