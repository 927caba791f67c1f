"""ONNX Runtime sessions that run on the provider that they name.

In: an ONNX file and a provider. Out: a session, or the reason why the provider does not run here. Open ``session.py``
first.
"""
