"""Measurements of ONNX files: accuracy, latency, memory, and the latency of single layers.

In: files, images and a provider. Out: accuracies, paired ratios with confidence intervals, and a latency table for planning.
Open ``latency.py`` first.
"""
