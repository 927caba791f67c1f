"""A trained network and its images.

Input: every form of ``--model``, ``--weights`` and ``--data``. Output: a :class:`~secateur.network.network.Network`,
:class:`~secateur.network.images.splits.Splits` of images, and views of the network as a graph and as groups of coupled
channels. Open ``network.py`` first, then ``load.py``.
"""
