"""ONNX Runtime sessions that are guaranteed to run on the requested provider.

In: an ONNX file and the name of a provider. Out: an open session, or the reason why the provider does not run on this
machine. Open ``session.py`` first, then ``provider_choice.py``, which decides what ``auto`` means; ``classifier.py`` reads
what a file expects and returns, ``bound_runs.py`` holds the two runs that are timed.
"""
