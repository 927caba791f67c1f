"""A network as a torch.fx graph: traced, run node by node, and analysed for which layer feeds which.

Input: a module and an example input. Output: a graph whose functional calls are modules, the origin of every channel, and
the links between layers. Open ``trace.py`` first, then ``topology.py``.
"""
