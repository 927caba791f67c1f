"""Images from every form of ``--data``: found, checked, split, and read in normalised batches.

Input: a folder, a torchvision data set, a function, or the digits. Output: :class:`~secateur.network.images.splits.Splits`.
Open ``load.py`` first.
"""
