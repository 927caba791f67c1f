"""Tools outside of a run: compare any two ONNX files, and examine this machine.

In: files and options. Out: results that the commands print. Open ``bench.py`` first, then ``doctor.py``.
"""
