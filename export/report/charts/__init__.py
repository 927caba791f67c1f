"""The charts of the report page, as self-contained SVG.

In: rows of a report. Out: markup with all names escaped. Open ``throughput.py`` first.
"""
