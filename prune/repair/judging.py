"""How far a network's class scores are from the original's, measured on validation images."""

import math
from collections.abc import Callable

from ...network.evaluation import divergence, predict
from ...network.graph.pass_through import without_zero_sums
from ...network.hooks import pick_logits
from ...network.images.images import Images
from ...network.network import Network

JUDGING_IMAGES = 1000


def judging(original: Network, validation: Images, seed: int, device: str) -> Callable[[Network], float]:
    """Return a function that measures a network's divergence from the original.

    The divergence is KL(original || network) of the class scores, in nats, averaged over at most ``JUDGING_IMAGES`` validation
    images; it is infinite where the class scores are not finite. No label is read.
    """
    sample = validation.sample(JUDGING_IMAGES, seed)
    reference = predict(original.copy().module.to(device), sample, device=device, pick=pick_logits)

    def judge(network: Network) -> float:
        module = without_zero_sums(network.module.eval(), network.example(1)).to(device)
        value = divergence(predict(module, sample, device=device, pick=pick_logits), reference)
        module.to("cpu")
        return value if math.isfinite(value) else math.inf

    return judge
