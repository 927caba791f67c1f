from dataclasses import replace

import torch

from secateur.explain.evidence.chosen_images import choose_images
from secateur.network.evaluation import predict


def test_every_class_has_its_turn_and_mistakes_come_on_request(tiny, network_of, noise_images, spread):
    network, images = spread(network_of(tiny("chain")), noise_images(60))
    probabilities = predict(network.logits, images).softmax(1)
    predicted, right = probabilities.argmax(1), probabilities.argmax(1) == images.labels
    classes = set(images.labels[right].tolist())
    found = choose_images(network, images, 2 * len(classes), 3, seed=1)
    assert all(bool(right[number]) for number in found.right)
    labels = [int(images.labels[number]) for number in found.right]
    assert labels[: len(classes)] == sorted(classes)
    wrong = (~right).nonzero().flatten().tolist()
    confident = sorted(wrong, key=lambda number: -float(probabilities[number, predicted[number]]))
    assert list(found.wrong) == confident[:3]
    assert choose_images(network, images, 4, 3, seed=1).right == found.right[:4]
    assert choose_images(network, images, 4).wrong == ()


def test_predictions_for_labels_know_no_mistakes(tiny, network_of, noise_images):
    network, images = network_of(tiny("chain")), noise_images(20)
    own = replace(images, labels=predict(network.logits, images).argmax(1), labelled=False)
    found = choose_images(network, own, 3, 5)
    assert (len(found.right), found.wrong) == (3, ())
    assert torch.equal(own.labels, predict(network.logits, images).argmax(1))
