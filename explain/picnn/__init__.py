"""PICNN: class-specific clusters of filters (Guo et al., AAAI 2024, arXiv:2312.12068).

In: a network and labelled images. Out: the matrix P of classes and filters, a network trained with the pathway, the
measures ACC1 to ACC3 and MIS, and kernel scores. Open ``pathway.py`` first, then ``membership.py``.
"""
