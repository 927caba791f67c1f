"""Shapley values between kernels: what each channel that a layer reads gives to the layer's own channels.

In: a network and a batch of images. Out: values for every link, in closed form where channels stay apart, estimated
elsewhere. Open ``explainer.py`` first, then ``closed_form.py``.
"""
