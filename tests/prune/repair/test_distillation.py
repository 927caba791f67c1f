import copy
from dataclasses import replace

import torch

from secateur.prune.repair.distillation import distill


def test_it_trains_towards_the_originals_outputs_and_reads_no_label(tiny, network_of, noise_images, cut_randomly):
    network = network_of(tiny("chain"))
    small, images = cut_randomly(network), noise_images(64)
    unseen = noise_images(100, seed=5).pixels()
    held = copy.deepcopy(network.module.state_dict())

    def divergence(module):
        with torch.no_grad():
            ours, theirs = (one(unseen).double().log_softmax(1) for one in (module.eval(), network.module))
        return float((theirs.exp() * (theirs - ours)).sum(1).mean())

    results = []
    for labels in (images.labels, torch.zeros_like(images.labels)):
        module = copy.deepcopy(small.module)
        distill(network, module, replace(images, labels=labels))
        results.append(module)
    assert divergence(results[0]) < divergence(small.module) / 2
    states = [module.state_dict() for module in results]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert all(torch.equal(value, held[name]) for name, value in network.module.state_dict().items())
