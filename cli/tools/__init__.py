"""What commands do that is no part of a run: comparing any two ONNX files, and examining this machine.

In: files and options. Out: results that the commands print. Open ``bench.py`` first, then ``doctor.py``.
"""
