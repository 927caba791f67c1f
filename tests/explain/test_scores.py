import pytest
import torch

from secateur.common.errors import InputError
from secateur.explain.scores import KernelScores, RankingTask


@pytest.fixture
def scores():
    generator = torch.Generator().manual_seed(0)
    layers = {"b": torch.rand(5, generator=generator), "a.0": torch.rand(3, generator=generator)}
    return KernelScores(
        "mine", "points", layers, {"b": torch.rand(2, 5, generator=generator)}, {"images": 7, "by": "x"}
    )


def test_scores_come_back_as_they_were_saved(tmp_path, scores):
    scores.save(tmp_path / "s.safetensors")
    back = KernelScores.load(tmp_path / "s.safetensors")
    assert (back.method, back.unit, back.details) == ("mine", "points", {"images": 7, "by": "x"})
    assert back.layers.keys() == scores.layers.keys()
    assert all(torch.equal(back.layers[name], scores.layers[name]) for name in scores.layers)
    assert torch.equal(back.per_class["b"], scores.per_class["b"])


def test_the_members_of_a_consensus_come_back_with_it(tmp_path, scores):
    other = KernelScores("other", "nats", {"b": torch.arange(5.0)})
    KernelScores(
        "both", "ranks", {"b": torch.ones(5)}, details={"x": 1}, members={"mine": scores, "other": other}
    ).save(tmp_path / "s.safetensors")
    back = KernelScores.load(tmp_path / "s.safetensors")
    assert back.layers.keys() == {"b"}
    assert not back.per_class
    assert list(back.members) == ["mine", "other"]
    assert torch.equal(back.members["mine"].layers["a.0"], scores.layers["a.0"])
    assert torch.equal(back.members["mine"].per_class["b"], scores.per_class["b"])
    assert back.members["other"].unit == "nats"
    assert back.members["other"].layers["b"].tolist() == [0, 1, 2, 3, 4]


def test_equal_scores_give_equal_bytes(tmp_path, scores):
    turned = KernelScores(
        scores.method, scores.unit, dict(reversed(scores.layers.items())), scores.per_class, {"by": "x", "images": 7}
    )
    contents = set()
    for index, value in enumerate([scores, turned] * 4):
        value.save(tmp_path / str(index))
        contents.add((tmp_path / str(index)).read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", ["layers", "per_class"])
def test_scores_that_are_not_finite_are_refused(value, place):
    given = {"layers": {"conv7": torch.ones(3)}, "per_class": {}} | {place: {"conv7": torch.tensor([[1.0, value]])}}
    with pytest.raises(InputError, match=r"mine returned NaN or infinite scores for layer 'conv7'"):
        KernelScores("mine", "points", **given)


@pytest.mark.parametrize("content", [None, b"", b"nonsense, but long enough to be read as a header", "other"])
def test_files_that_hold_no_scores(tmp_path, content):
    from safetensors.torch import save_file

    path = tmp_path / "s.safetensors"
    if content == "other":
        save_file({"a": torch.zeros(2)}, path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"s\.safetensors"):
        KernelScores.load(path)


@pytest.mark.parametrize(("size", "wanted"), [(8, 128), (32, 128), (224, 16)])
def test_batches_shrink_with_the_picture(networks, network_of, noise_images, size, wanted):
    task = RankingTask(network_of(networks.Plain(), (3, size, size)), noise_images(2))
    assert task.batch_size == pytest.approx(wanted, abs=0.1 * wanted)
