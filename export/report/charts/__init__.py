"""The charts of the report page, as SVG that needs nothing else.

In: rows of a report. Out: markup with every name escaped. Open ``throughput.py`` first.
"""
