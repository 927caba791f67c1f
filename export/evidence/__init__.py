"""The evidence page and its pictures.

In: evidence trees, kernel cards and clusters. Out: ``evidence.html``, one self-contained file, and pictures of single
decisions. Open ``page.py`` first, then ``data.py``.
"""
