from dataclasses import replace

import pytest
import torch

from secateur.common.errors import InputError, UsageError
from secateur.explain.ranking import rank_kernels
from secateur.explain.scores import RankingTask


def test_an_unknown_method_is_refused(tiny, network_of, noise_images):
    with pytest.raises(UsageError, match="magnitude"):
        rank_kernels(RankingTask(network_of(tiny("chain")), noise_images(2)), "magnitud")


@pytest.mark.parametrize("count", [0, 6])
def test_images_without_labels_are_named_before_a_ranker_meets_them(tiny, network_of, noise_images, count):
    images = noise_images(6).subset(torch.arange(count))
    task = RankingTask(network_of(tiny("chain")), replace(images, labels=torch.full((count,), -1)))
    with pytest.raises(InputError, match="label_images" if count else "there are none"):
        rank_kernels(task, "gap")
