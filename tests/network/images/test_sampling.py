import numpy as np
import torch

from secateur.network.images.sampling import stratified_split


def test_stratified_split_gives_every_class_its_share():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    chosen, rest = stratified_split(labels, 10, 3)
    assert torch.bincount(labels[chosen]).tolist() == [5, 3, 2]
    assert sorted(chosen.tolist() + rest.tolist()) == list(range(100))
    assert stratified_split(labels, 10, 3)[0].tolist() == chosen.tolist()
    assert stratified_split(labels, 10, 4)[0].tolist() != chosen.tolist()


def test_of_more_classes_than_places_chance_decides_which_are_drawn():
    labels = torch.arange(40).repeat(2)
    counts = np.zeros(40)
    for seed in range(400):
        chosen, rest = stratified_split(labels, 8, seed)
        assert sorted(chosen.tolist() + rest.tolist()) == list(range(80))
        assert len(set(labels[chosen].tolist())) == 8
        counts[labels[chosen].numpy()] += 1
    deviation = (400 * 0.2 * 0.8) ** 0.5
    assert np.all(np.abs(counts - 80) < 5 * deviation)
