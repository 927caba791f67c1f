"""The evidence page and its pictures.

In: evidence trees, kernel cards and clusters. Out: ``evidence.html``, one file that works from a disk, and pictures of
single decisions. Open ``page.py`` first, then ``data.py``.
"""
