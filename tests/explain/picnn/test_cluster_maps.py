import pytest
import torch
from captum.attr import LayerGradCam
from torchvision import models

from secateur.common.errors import InputError
from secateur.explain.picnn.cluster_maps import cluster_maps
from secateur.explain.picnn.membership import fit_membership, membership_of
from secateur.explain.picnn.pathway import Pathway
from secateur.explain.settings import PicnnSettings


@pytest.fixture(scope="module")
def found(tiny, network_of, noise_images):
    network, images = network_of(tiny("Padded")), noise_images(60)
    pathway, membership = fit_membership(network, images, PicnnSettings(post_hoc_steps=20, batch_size=32))
    return network, pathway, membership, images.preprocessing.normalise(images.pixels())[:6]


def test_the_whole_map_is_captums_grad_cam(found):
    network, pathway, membership, x = found
    maps = cluster_maps(pathway, membership, x)
    with torch.no_grad():
        predicted = network.logits(x).argmax(1)
    assert torch.equal(maps.classes, predicted)
    reference = LayerGradCam(network.module, network.module.layer3).attribute(x, predicted, relu_attributions=True)
    assert torch.allclose(maps.whole, reference.squeeze(1), atol=1e-5)


def test_maps_of_cluster_and_complement_share_out_the_whole(found):
    _, pathway, membership, x = found
    classes = torch.tensor([0, 1, 2, 3, 0, 1])
    maps = cluster_maps(pathway, membership, x, classes)
    features, _ = pathway.parts.trunk(x)
    weight = pathway.parts._head.linear.weight[
        classes
    ]  # behind a mean over places the slope is the weight over the places
    places = features.shape[2] * features.shape[3]
    for row, label in enumerate(classes.tolist()):
        parts = (weight[row].view(-1, 1, 1) / places * features[row]).detach()
        own = membership.cluster(label)
        rest = [filter_ for filter_ in range(32) if filter_ not in own.tolist()]
        assert torch.allclose(maps.cluster[row], parts[own].sum(0).relu(), atol=1e-5)
        assert torch.allclose(maps.complement[row], parts[rest].sum(0).relu(), atol=1e-5)


def test_nothing_keeps_gradients(found):
    _, pathway, membership, x = found
    flags = [parameter.requires_grad for parameter in pathway.parts.parameters()]
    with torch.no_grad():
        maps = cluster_maps(pathway, membership, x)
    assert not maps.whole.requires_grad
    assert [parameter.requires_grad for parameter in pathway.parts.parameters()] == flags


def test_features_without_places_have_no_map(network_of):
    module = models.VisionTransformer(32, 16, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=24, num_classes=4)
    network = network_of(module, (3, 32, 32))
    pathway = Pathway(network, PicnnSettings())
    with pytest.raises(InputError, match="without positions"):
        cluster_maps(pathway, membership_of(pathway, network), network.example())
