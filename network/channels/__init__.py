"""Coupled channels: which channels must be cut together, and the cut itself.

In: a module and an example input. Out: :class:`~secateur.network.channels.group.ChannelGroup` for every coupling, with the
reason where it is locked, and smaller copies of the module. Open ``group.py`` first, then ``follow.py`` (finds the groups)
and ``cut.py``.
"""
