"""A network as a torch.fx graph: traced, run node by node, and read for what feeds what.

In: a module and an example input. Out: a graph whose functional calls are modules, the origin of every channel, the links
between layers. Open ``trace.py`` first, then ``topology.py``.
"""
