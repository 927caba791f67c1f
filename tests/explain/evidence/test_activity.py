import pytest
import torch

from secateur.common.errors import InputError
from secateur.explain.evidence.activity import measure_activity
from secateur.explain.evidence.patches import strongest_patches
from secateur.explain.evidence.receptive_fields import FieldMaps
from secateur.explain.evidence.regions import Box
from secateur.network.graph.topology import find_topology
from secateur.network.graph.trace import trace
from secateur.network.images.images import images_from_tensor


def outputs(module, name, x):
    """What a module gives, read by a hook."""
    found = []
    handle = module.get_submodule(name).register_forward_hook(
        lambda _module, _inputs, output: found.append(output.clone())
    )
    with torch.no_grad():
        module(x)
    handle.remove()
    return found[0]


def test_activity_is_what_a_hook_reads_image_by_image(traced, noise_images):
    network, view, sites = traced("chain")
    images = noise_images(23)
    x = torch.cat([batch for batch, _ in images.batches(23)])
    maps = torch.relu(outputs(network.module, "bn1", x))  # [23, 8, 12, 12]: conv1 is read behind its norm and ReLU
    found = measure_activity(view, sites, images, 4, batch_size=5)["conv1"]
    assert (found.height, found.width) == (12, 12)
    torch.testing.assert_close(found.average, maps.mean((0, 2, 3)))
    torch.testing.assert_close(found.active, (maps > 0).float().mean((0, 2, 3)))
    for label in range(4):
        own = maps[images.labels == label]
        torch.testing.assert_close(found.per_class[label], own.mean((0, 2, 3)) if len(own) else torch.zeros(8))
    for kernel in range(8):
        largest = [(float(maps[image, kernel].max()), -image) for image in range(23)]
        order = [-image for _, image in sorted(largest, reverse=True)][:9]
        assert found.image[kernel].tolist() == order
        for image, place, value in zip(order, found.place[kernel].tolist(), found.value[kernel].tolist(), strict=True):
            assert float(maps[image, kernel].flatten()[place]) == pytest.approx(value, abs=1e-6)
            assert value == pytest.approx(float(maps[image, kernel].max()), abs=1e-6)


def test_a_profile_has_a_closed_form(network_of):
    """A kernel that adds the channels up, on images of one colour a class: its mean is that colour's sum."""
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 1, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(1, 3)
    )
    with torch.no_grad():
        module[0].weight.fill_(1.0)
        module[0].bias.fill_(-1.0)
    network = network_of(module, (3, 6, 6), 3)
    labels = torch.arange(12) % 3
    pixels = torch.tensor([0.1, 0.4, 0.9])[labels].view(-1, 1, 1, 1).expand(-1, 3, 6, 6).contiguous()
    view = trace(module, network.example())
    sites = [site for site in find_topology(view, network.example()).sites.values() if site.name == "0"]
    found = measure_activity(view, sites, images_from_tensor(pixels, labels, network.preprocessing), 4)["0"]
    torch.testing.assert_close(found.per_class[:, 0], torch.tensor([-0.7, 0.2, 1.7, 0.0]))
    torch.testing.assert_close(found.average, torch.tensor([0.4]))
    torch.testing.assert_close(found.active, torch.tensor([2 / 3]))
    patches = strongest_patches(FieldMaps(view, network.example()), sites[0], found, [0])[0]
    assert [patch.image for patch in patches] == [
        2,
        5,
        8,
        11,
        1,
        4,
        7,
        10,
    ]  # equal ones in order; none at or below zero
    assert patches[0].box == Box(0, 0, 1, 1)


def test_images_without_labels_are_refused(traced, noise_images):
    from dataclasses import replace

    _, view, sites = traced("chain")
    images = noise_images(4)
    with pytest.raises(InputError, match="labels from 0 to 3"):
        measure_activity(view, sites, replace(images, labels=torch.full((4,), -1)), 4)
