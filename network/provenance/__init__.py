"""Where every channel of every value comes from: labels that follow channels through a traced network.

In: a traced network and an image. Out: a :class:`~secateur.network.provenance.labelling.Labelling`, which says which channels
of which layers and parameters must be removed together, and what forbids it. Open ``labelling.py`` first, then ``moves.py``
(operations that move channels) and ``contractions.py`` (products that sum over them).
"""
