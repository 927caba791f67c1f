"""ONNX files, their measured accuracy and latency, reports and the evidence page.

In: the original and the pruned network, their images, and the results of the run. Out: checked files with accuracy and
latency, and a report in all its formats. Open ``onnx/model.py`` first, then ``measure/latency.py`` and ``report/report.py``.
"""
