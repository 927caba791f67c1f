"""Coupled channels: which channels must be removed together, and the removal itself.

Input: a module and an example input. Output: a :class:`~secateur.network.channels.group.ChannelGroup` for every coupling,
with the reason if it is locked, and smaller copies of the module. Open ``group.py`` first, then ``follow.py``
(finds the groups) and ``cut.py``.
"""
