"""The evidence for decisions and kernels: trees of kernels and positions, patches, receptive fields, heat maps.

In: a network, images and scores. Out: :class:`~secateur.explain.evidence.tree.EvidenceTree` for a picture and
:class:`~secateur.explain.evidence.kernel_cards.KernelEvidence` for all kernels. Open ``tree.py`` first.
"""
