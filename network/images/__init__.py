"""Images from every form of ``--data``: found, checked, split and handed out in normalised batches.

In: a folder, a torchvision set, a function or the embedded digits. Out: :class:`~secateur.network.images.splits.Splits`.
Open ``load.py`` first.
"""
