import pytest
import torch

from secateur.explain.evidence.activity import measure_activity
from secateur.explain.evidence.patches import strongest_patches
from secateur.explain.evidence.receptive_fields import FieldMaps
from secateur.explain.evidence.regions import Box


def test_the_activation_of_a_patch_depends_on_its_box_alone(traced, noise_images):
    """What lies outside the box is replaced: the activation there stays."""
    network, view, sites = traced("padded")
    images = noise_images(12)
    x = torch.cat([batch for batch, _ in images.batches(12)])
    found = measure_activity(view, sites, images, 4)
    checked = 0
    for site in sites:
        if site.name not in ("layer1.0.conv1", "layer2.0.conv1", "layer1.0.join"):
            continue
        patches = strongest_patches(FieldMaps(view, network.example()), site, found[site.name], range(site.channels))
        for kernel in (0, 3, 7):
            for rank, patch in enumerate(patches[kernel][:3]):
                box = patch.box
                other = torch.rand_like(x[:1])
                other[..., box.top : box.bottom, box.left : box.right] = x[
                    patch.image, :, box.top : box.bottom, box.left : box.right
                ]
                from secateur.network.graph.execution import run_graph

                with torch.no_grad():
                    value = run_graph(view, other, [site.reading])[site.reading]
                place = int(found[site.name].place[kernel, rank])
                assert float(value[0, kernel].flatten()[place]) == pytest.approx(patch.value, abs=1e-5)
                checked += 1
    assert checked > 10


def test_layers_without_places_show_whole_images(traced, noise_images):
    network, view, sites = traced("dense")
    found = measure_activity(view, sites, noise_images(10), 4)
    hidden = next(site for site in sites if site.name == "hidden")
    patches = strongest_patches(FieldMaps(view, network.example()), hidden, found["hidden"], range(16))
    assert {patch.box for own in patches.values() for patch in own} == {Box(0, 0, 12, 12)}
