"""An exported graph without what torch and a cut leave in it, with equal outputs.

In: a ``ModelProto``. Out: the same, changed in place: constants computed, branches without inputs moved into biases, shortcuts
that pad channels as convolutions, and no operations that change nothing. Open ``clean.py`` first, then ``graph.py``.
"""
