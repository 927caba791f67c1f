import copy

import pytest
import torch
from torch.nn import functional as F

from secateur.prune.repair.batch_norm import reestimate_norms


@pytest.mark.parametrize(("count", "sizes"), [(20, (8, 8, 4)), (17, (8, 8))])
def test_reestimated_statistics_are_plain_averages_over_batches(tiny, noise_images, count, sizes):
    """Both BatchNorms of the chain by hand; a last batch of one image is left out."""
    module, images = tiny("chain"), noise_images(count)
    before = copy.deepcopy(module)
    assert reestimate_norms(module, images, batch_size=8) == ("bn1", "bn2")
    firsts, seconds, start = [], [], 0
    with torch.no_grad():
        for size in sizes:
            first = before.conv1(images.pixels()[start : start + size])
            start += size
            bn = before.bn1
            hidden = F.relu(F.batch_norm(first, None, None, bn.weight, bn.bias, training=True, eps=bn.eps))
            firsts.append(first)
            seconds.append(before.conv2(hidden))
    for norm, maps in ((module.bn1, firsts), (module.bn2, seconds)):
        flat = [one.transpose(0, 1).flatten(1).double() for one in maps]
        assert torch.allclose(norm.running_mean.double(), sum(one.mean(1) for one in flat) / len(flat), atol=1e-5)
        assert torch.allclose(norm.running_var.double(), sum(one.var(1) for one in flat) / len(flat), rtol=1e-4)
        assert norm.momentum == 0.1
        assert not norm.training
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before.get_parameter(name))


def test_a_network_without_batchnorm_or_with_one_image_is_left_alone(tiny, noise_images):
    for name, count in (("dense", 8), ("chain", 1)):
        module = tiny(name)
        state = copy.deepcopy(module.state_dict())
        assert reestimate_norms(module, noise_images(count)) == ()
        assert all(torch.equal(state[key], value) for key, value in module.state_dict().items())
