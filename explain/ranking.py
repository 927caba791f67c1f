"""Score all kernels of a network by one ranker, or by a consensus of several."""

from ..common.errors import InputError
from . import consensus
from .registry import get_ranker
from .scores import KernelScores, RankingTask


def members_of(method: str) -> tuple[str, ...]:
    """The methods of a ranking: itself, a comma-separated list, or the members of ``consensus``.

    Raises:
        UsageError: a method does not exist, or they form no consensus.
    """
    names = tuple(name.strip() for name in method.split(","))
    if len(names) > 1:
        consensus.check_members(names)
        return names
    return consensus.MEMBERS if get_ranker(method).name == "consensus" else names


def rank_kernels(task: RankingTask, method: str = "gap") -> KernelScores:
    """Score every kernel of the network by a registered method, or by a consensus of several, separated by commas.

    Raises:
        UsageError: a method does not exist, or they form no consensus.
        InputError: there are no images, or some have no label (-1).
        InputError: the method cannot run on this network, or returned NaN.

    Examples:
        >>> import secateur
        >>> network = secateur.load_model("digits")
        >>> images = secateur.load_images("digits", network.preprocessing)
        >>> task = secateur.RankingTask(network, images.train.sample(200, seed=0))
        >>> scores = secateur.rank_kernels(task, "gap")
        >>> scores.layers["block3.conv1"].shape
        torch.Size([64])
    """
    members = members_of(method)
    needy = len(members) > 1 or get_ranker(method).needs != "weights"
    if needy and (not len(task.images) or int(task.images.labels.min()) < 0):
        what = (
            "some have none. Label them with the network's predictions by label_images"
            if len(task.images)
            else "there are none"
        )
        raise InputError(f"Ranking by {method} needs calibration images with labels, and {what}.")
    return consensus.score_together(task, members) if len(members) > 1 else get_ranker(method).score(task)
