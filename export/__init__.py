"""The artefact and the proof: ONNX files, figures measured on them, reports and the evidence page.

In: the original and the pruned network, their images, and what the run decided. Out: checked files with accuracy and
latency, a report in every form. Open ``onnx/model.py`` first, then ``measure/latency.py`` and ``report/report.py``.
"""
