"""Shapley values between kernels: the contribution of each input channel of a layer to the layer's own channels.

In: a network and a batch of images. Out: values for every link, in closed form where channels are not mixed, estimated
elsewhere. Open ``explainer.py`` first, then ``closed_form.py``.
"""
