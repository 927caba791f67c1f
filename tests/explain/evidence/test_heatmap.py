import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from secateur.common.errors import InputError, UsageError
from secateur.explain.evidence.heatmap import gradient_picture, overlay, pixels_picture


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def colour(name, position):
    return [round(255 * part) for part in colormaps[name](position)[:3]]


def test_unsigned_maps_run_from_least_to_most(picture):
    shown = np.asarray(overlay(torch.tensor([[-1.0, 1.0], [0.0, 3.0]]), picture, alpha=1, enlarge="nearest"))
    assert shown.shape == (6, 8, 3)
    for rows, columns, position in [
        (slice(3), slice(4), 0.0),
        (slice(3), slice(4, 8), 0.5),
        (slice(3, 6), slice(4), 0.25),
    ]:
        assert (np.abs(shown[rows, columns].astype(int) - colour("inferno", position)) <= 1).all()
    assert (shown[3:, 4:] == colour("inferno", 1.0)).all()


def test_signed_maps_are_white_at_zero(picture):
    shown = np.asarray(
        overlay(torch.tensor([[-1.0, 0.0], [2.0, -2.0]]), picture, signed=True, alpha=1, enlarge="nearest")
    )
    assert (shown[0, 4] >= 246).all()
    assert list(shown[5, 0]) == colour("RdBu_r", 1.0)
    assert list(shown[5, 7]) == colour("RdBu_r", 0.0)
    assert shown[5, 0, 0] > shown[5, 0, 2] + 50  # red for
    assert shown[5, 7, 2] > shown[5, 7, 0] + 50  # blue against


def test_bilinear_maps_have_colours_of_the_scale_in_between(picture):
    shown = np.asarray(overlay(torch.tensor([[0.0, 1.0]]), picture, alpha=1)).astype(int)
    scale = (np.array([colormaps["inferno"](index)[:3] for index in range(256)]) * 255).round().astype(int)
    for column in range(8):
        assert (np.abs(scale - shown[0, column]).max(1) == 0).any()
    assert len({tuple(row) for row in shown[0]}) > 4


def test_alpha_mixes_with_the_grey_picture(picture):
    grey = np.asarray(picture.convert("L").convert("RGB")).astype(float)
    field = torch.rand(6, 8, generator=torch.Generator().manual_seed(0))
    full = np.asarray(overlay(field, picture, alpha=1)).astype(float)
    mixed = np.asarray(overlay(field, picture, alpha=0.25)).astype(float)
    assert np.abs(mixed - (0.75 * grey + 0.25 * full)).max() <= 1
    assert (np.asarray(overlay(field, picture, alpha=0)) == grey).all()


def test_even_maps_have_one_colour(picture):
    zero = torch.zeros(3, 3)
    assert (np.asarray(overlay(zero + 5, picture, alpha=1)) == colour("inferno", 0.0)).all()
    assert (np.asarray(overlay(zero, picture, signed=True, alpha=1)) >= 246).all()
    assert list(np.asarray(overlay(zero - 5, picture, signed=True, alpha=1))[0, 0]) == colour("RdBu_r", 0.0)


def test_gradients_are_grey_at_zero():
    gradient = torch.tensor([0.0, 0.5, -1.0, 1.0]).view(1, 2, 2)
    assert np.asarray(gradient_picture(gradient))[..., 1].tolist() == [[128, 191], [0, 255]]
    three = torch.stack([gradient[0], torch.zeros(2, 2), -gradient[0]])
    assert np.asarray(gradient_picture(three))[1, 1].tolist() == [255, 128, 0]
    assert (np.asarray(gradient_picture(torch.zeros(3, 4, 5))) == 128).all()


def test_pixels_are_shown_as_they_are():
    eight = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    wanted = eight.permute(1, 2, 0).numpy()
    assert (np.asarray(pixels_picture(eight)) == wanted).all()
    assert (np.asarray(pixels_picture(eight.float() / 255)) == wanted).all()
    assert np.asarray(pixels_picture(torch.tensor([[[1.2, -0.1]]]))).tolist() == [[[255] * 3, [0] * 3]]


def test_what_cannot_be_shown_is_refused(picture):
    with pytest.raises(InputError, match=r"height x width with finite values \(got \[1, 2, 2\]\)"):
        overlay(torch.zeros(1, 2, 2), picture)
    with pytest.raises(InputError, match="finite"):
        overlay(torch.full((2, 2), torch.nan), picture)
    with pytest.raises(UsageError, match="alpha must be between 0 and 1"):
        overlay(torch.zeros(2, 2), picture, alpha=1.5)
    with pytest.raises(UsageError, match="Expected nearest, bilinear"):
        overlay(torch.zeros(2, 2), picture, enlarge="cubic")
    with pytest.raises(InputError, match=r"1 or 3 channels .* \(got \[2, 4, 4\]\)"):
        gradient_picture(torch.zeros(2, 4, 4))
    with pytest.raises(InputError, match=r"1 or 3 channels .* \(got \[4, 4\]\)"):
        pixels_picture(torch.zeros(4, 4))
