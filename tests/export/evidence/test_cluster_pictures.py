import pytest
import torch
from PIL import Image

from secateur.explain.picnn.cluster_maps import ClusterMaps
from secateur.explain.picnn.membership import Membership
from secateur.export.evidence.cluster_pictures import draw_cluster_maps, draw_membership

NAMES = ("cat", "a $name_with^{marks} and more than fits beside it", "<b>x</b>")


@pytest.fixture
def membership():
    return Membership(
        "layer3", "bernoulli", torch.rand(3, 20, generator=torch.Generator().manual_seed(0)).softmax(0), NAMES
    )


def drawn(path):
    """Size of a picture, and how many colours it has."""
    picture = Image.open(path).convert("RGB")
    return picture.size, len(
        set(picture.get_flattened_data() if hasattr(picture, "get_flattened_data") else picture.getdata())
    )


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_matrix_is_drawn(tmp_path, membership, suffix):
    path = tmp_path / f"p.{suffix}"
    draw_membership(membership, path)
    if suffix == "png":
        size, colours = drawn(path)
        assert size[0] > 300
        assert colours > 50
    else:
        assert b"<svg" in path.read_bytes()


def test_a_thousand_classes_are_drawn_without_names(tmp_path):
    names = tuple(f"class {index}" for index in range(1000))
    draw_membership(Membership("x", "bernoulli", torch.full((1000, 300), 0.001), names), tmp_path / "p.png")
    assert drawn(tmp_path / "p.png")[0][1] < 2000


def test_maps_are_drawn_row_by_row(tmp_path, membership):
    maps = [torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    pixels = (255 * torch.rand(2, 3, 16, 16)).to(torch.uint8)
    draw_cluster_maps(ClusterMaps(*maps, torch.tensor([1, 2])), pixels, NAMES, membership, tmp_path / "m.png")
    size, colours = drawn(tmp_path / "m.png")
    assert size[0] > size[1]
    assert colours > 200


def test_maps_that_are_zero_everywhere_and_grey_pictures(tmp_path, membership):
    nothing = torch.zeros(1, 2, 2)
    pixels = torch.rand(1, 1, 8, 8)
    draw_cluster_maps(
        ClusterMaps(nothing, nothing, nothing, torch.tensor([0])), pixels, NAMES, membership, tmp_path / "m.png"
    )
    assert drawn(tmp_path / "m.png")[1] > 1
