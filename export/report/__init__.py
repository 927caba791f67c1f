"""One result in several formats, and the gates that judge it.

In: the content of ``report.json``. Out: Markdown, an HTML page, JUnit, a model card, and a comparison of two reports. Open
``report.py`` first, then ``rendering.py`` and ``gates.py``.
"""
