"""AGIC: attribution graphs of a network's kernels and scores aggregated along their edges (Zheng et al., 2024,
reconstructed from the abstract).

In: a network and calibration images. Out: one graph for each image, embeddings of kernels, and kernel scores. Open
``graphs.py`` first, then ``encoder.py``, ``edge_scoring.py`` and ``ranker.py`` in this order.
"""
