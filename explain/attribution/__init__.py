"""Attribution methods of captum, reduced to one score per kernel: conductance, internal influence, integrated gradients,
DeepLIFT, LRP.

In: a network and calibration images. Out: kernel scores by each method. Open ``rankers.py`` first; ``graph_views.py``
rewrites networks so that captum's rules apply.
"""
