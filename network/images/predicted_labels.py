"""Label images without labels by the network's predictions."""

from dataclasses import replace

from torch import Tensor

from ...common.progress import Progress, silent
from ..evaluation import predict
from ..hooks import pick_logits
from ..network import Network
from .splits import Splits

_WORDS = {"train": "training", "validation": "validation", "test": "test"}


def label_images(
    network: Network,
    splits: Splits,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> Splits:
    """Label images without labels by the network's top-1 predictions; their ``labelled`` stays False.

    Splits with labels stay as they are. Call ``match_classes`` before, since predictions are in the order of the network's
    outputs.

    Args:
        progress: called with (images done, total images).

    Examples:
        >>> import secateur, torch
        >>> from dataclasses import replace
        >>> network = secateur.load_model("digits")
        >>> images = secateur.load_images("digits", network.preprocessing)
        >>> unknown = replace(images.train, labels=torch.full_like(images.train.labels, -1), labelled=False)
        >>> labelled = secateur.label_images(network, replace(images, train=unknown))
        >>> labelled.unlabelled, int(labelled.train.labels.min())
        (('train',), 0)
    """
    missing = {name: part for name in splits.unlabelled if len(part := getattr(splits, name))}
    if not missing:
        return splits
    module = network.copy().module.to(device)
    done, total = 0, sum(map(len, missing.values()))

    def logits_of(batch: Tensor) -> Tensor:
        nonlocal done
        logits = pick_logits(module(batch))
        done += len(batch)
        progress(done, total)
        return logits

    found = {
        name: replace(part, labels=predict(logits_of, part, device=device).argmax(1)) for name, part in missing.items()
    }
    words = " and ".join(_WORDS[name] for name in missing)
    notes = [f"No labels for the {words} images: the original network's predictions are used instead."]
    if "test" in missing:
        notes.append(
            "Accuracy on the test images is agreement with the original network's predictions; its own is 100% by definition."
        )
    return replace(splits, notes=(*splits.notes, *notes), **found)
