"""A network as a checked ONNX file, in float32, float16 and int8.

In: a network and a path. Out: :class:`~secateur.export.onnx.model.OnnxModel` with its parity with torch. Open ``model.py``
first.
"""
