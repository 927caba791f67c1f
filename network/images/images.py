"""Images with or without labels, read on demand and returned in normalised batches."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...common.environment import available_cores
from ...common.errors import InputError
from .pictures import Preprocessing, in_words
from .sampling import seeded_generator, stratified_split

CACHE_BYTES = 2**30


class PixelStore:
    """The pixels of one data set, decoded on demand and cached if all of them fit into ``CACHE_BYTES``."""

    def __init__(self, count: int, read: Callable[[int], Tensor]) -> None:
        self._count, self._read = count, read
        self._cache: Tensor | None = None
        self._cached = torch.zeros(count, dtype=torch.bool)
        self._too_large = False

    def pixels(self, indices: Tensor) -> Tensor:
        """The pixels ``[n, C, H, W]`` of the images at ``indices``."""
        if self._too_large:
            return torch.stack(self._decode(indices.tolist()))
        missing = sorted(set(indices[~self._cached[indices]].tolist()))
        if missing:
            decoded = self._decode(missing)
            if self._cache is None:
                if decoded[0].numel() * decoded[0].element_size() * self._count > CACHE_BYTES:
                    self._too_large = True
                    return self.pixels(indices)
                self._cache = torch.empty((self._count, *decoded[0].shape), dtype=decoded[0].dtype)
            self._cache[torch.tensor(missing)] = torch.stack(decoded)
            self._cached[torch.tensor(missing)] = True
        assert self._cache is not None
        return self._cache[indices]

    def _decode(self, indices: list[int]) -> list[Tensor]:
        if len(indices) < 4:
            return [self._read(index) for index in indices]
        with ThreadPoolExecutor(max_workers=available_cores()) as pool:
            return list(pool.map(self._read, indices))


@dataclass(frozen=True)
class Images:
    """Images of one split.

    ``labels`` is int64 ``[n]``; ``names`` identify each image by its path in the data folder or its index. If ``labelled`` is
    False, the images came without labels: ``labels`` is -1 until ``label_images`` sets them to a network's predictions.
    """

    labels: Tensor
    names: tuple[str, ...]
    preprocessing: Preprocessing
    _store: PixelStore = field(repr=False)
    _indices: Tensor = field(repr=False)
    labelled: bool = True

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, indices: Tensor | None = None) -> Tensor:
        """Pixels ``[n, C, H, W]``, uint8 or float in [0, 1], of the images at ``indices`` (all of them, if None)."""
        chosen = self._indices if indices is None else self._indices[indices]
        return self._store.pixels(chosen)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (normalised images ``[n, C, H, W]``, labels ``[n]``) in the order of the indices ``order`` (all, if None)."""
        order = torch.arange(len(self)) if order is None else order
        for start in range(0, len(order), size):
            part = order[start : start + size]
            yield self.preprocessing.normalise(self.pixels(part)), self.labels[part]

    def subset(self, indices: Tensor) -> "Images":
        """The images at ``indices``, in that order; cached pixels are shared, not copied."""
        names = tuple(self.names[index] for index in indices.tolist())
        return replace(self, labels=self.labels[indices], names=names, _indices=self._indices[indices])

    def sample(self, count: int, seed: int) -> "Images":
        """A seeded, stratified sample of ``count`` images (at most all of them), in random order."""
        if count >= len(self):
            return self.subset(torch.randperm(len(self), generator=seeded_generator(seed)))
        chosen, _ = stratified_split(self.labels, count, seed)
        return self.subset(chosen)


def images_from_tensor(pixels: Tensor, labels: Tensor, preprocessing: Preprocessing) -> Images:
    """Images from pixels in memory, uint8 or float in [0, 1], ``[n, C, H, W]``, and int64 labels ``[n]``."""
    if tuple(pixels.shape[1:]) != preprocessing.input_shape:
        raise InputError(
            f"The images are {in_words(pixels.shape[1:])}, but the model expects {in_words(preprocessing.input_shape)} "
            "(channels x height x width). Use images of that size, or pass another --input-shape."
        )
    store = PixelStore(len(pixels), lambda index: pixels[index])
    names = tuple(str(index) for index in range(len(pixels)))
    return Images(labels.long(), names, preprocessing, store, torch.arange(len(pixels)))
