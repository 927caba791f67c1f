"""gAP, gradient-based activation propagation (Cheng et al., IJCV 131(5), 2023).

In: a network and a batch of images. Out: the contribution of every kernel to a decision, and the decision taken apart stage
by stage. Open ``contributions.py`` first (equations 3 and 4), then ``decomposition.py``
(equations 1 to 5, in ``descent.py``).
"""
