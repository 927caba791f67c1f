import json
import shutil

import pytest
import torch

from secateur.common.errors import InputError, UsageError
from secateur.network.load import load_model
from secateur.network.saved import save_network
from secateur.network.settings import ModelSettings
from secateur.prune import surgery
from secateur.prune.repair.repair import repair


def pruned_on_disk(network, plan_for, folder, images=None, kind="none", **options):
    plan = plan_for(network, **options)
    pruned = surgery.cut(network, plan)
    if images is not None:
        pruned, _ = repair(network, pruned, images, kind)
    surgery.save(pruned, plan, folder)
    return pruned


def bit_equal(first, second):
    x = first.example(3, seed=5)
    with torch.no_grad():
        return torch.equal(first.logits(x), second.logits(x))


@pytest.fixture
def from_file(networks_file, tiny, tmp_path):
    """A tiny network loaded the way a user would, from a file of factories of its own and a file of weights."""

    def load(name):
        file = tmp_path / "user" / "nets.py"
        file.parent.mkdir(exist_ok=True)
        shutil.copy(networks_file, file)
        torch.save(tiny(name, 3).state_dict(), file.parent / f"{name}.pth")
        return load_model(f"{file}:{name}", str(file.parent / f"{name}.pth"))

    return load


def test_pruned_digits_come_back_bit_for_bit(tmp_path, plan_for):
    network = load_model("digits")
    pruned = pruned_on_disk(network, plan_for, tmp_path / "run")
    back = load_model(str(tmp_path / "run"))
    assert bit_equal(pruned, back)
    assert not bit_equal(network, back)
    assert back.class_names == network.class_names
    assert back.preprocessing == network.preprocessing


@pytest.mark.parametrize("kind", ["none", "mean", "bn"])
@pytest.mark.parametrize("name", ["padded", "inverted", "grouped", "dense", "gated", "plain"])
def test_pruned_networks_come_back_bit_for_bit(from_file, tmp_path, plan_for, noise_images, name, kind):
    network = from_file(name)
    pruned = pruned_on_disk(network, plan_for, tmp_path / "run", noise_images(16), kind, round_to=1)
    back = load_model(str(tmp_path / "run"))
    assert bit_equal(pruned, back)
    assert not bit_equal(network, back)
    assert back.source.weights_sha256 == network.source.weights_sha256


def test_a_pruned_torchvision_network_comes_back(tmp_path, large, plan_for):
    torch.save(large("mobilenet_v3_small").state_dict(), tmp_path / "w.pth")
    settings = ModelSettings("mobilenet_v3_small", str(tmp_path / "w.pth"), (3, 32, 32))
    pruned = pruned_on_disk(load_model(settings), plan_for, tmp_path / "run")
    back = load_model(str(tmp_path / "run"))
    assert back.input_shape == (3, 32, 32)
    assert bit_equal(pruned, back)


@pytest.mark.parametrize("name", ["padded", "inverted"])
def test_a_pruned_network_can_be_pruned_again(from_file, tmp_path, plan_for, name):
    pruned_on_disk(from_file(name), plan_for, tmp_path / "first", fraction=0.6, round_to=1)
    once = load_model(str(tmp_path / "first"))
    twice = pruned_on_disk(once, plan_for, tmp_path / "second", fraction=0.6, round_to=1, seed=1)
    back = load_model(str(tmp_path / "second"))
    assert len(back.cuts) == 2
    assert bit_equal(twice, back)
    assert not bit_equal(once, back)
    assert sum(p.numel() for p in back.module.parameters()) < sum(p.numel() for p in once.module.parameters())


def test_equal_networks_give_equal_bytes(tmp_path, plan_for):
    network = load_model("digits")
    plan = plan_for(network)
    pruned = surgery.cut(network, plan)
    contents = set()
    for index in range(8):
        surgery.save(pruned, plan, tmp_path / str(index))
        contents.add(tuple((tmp_path / str(index) / name).read_bytes() for name in ("model.safetensors", "plan.json")))
    assert len(contents) == 1


def test_no_pickle_and_no_path_of_this_machine_in_the_file(from_file, tmp_path, plan_for):
    pruned_on_disk(from_file("chain"), plan_for, tmp_path / "run")
    content = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert str(tmp_path).encode() not in content
    size = int.from_bytes(content[:8], "little")
    assert "__metadata__" in json.loads(content[8 : 8 + size])


def test_the_run_and_the_factory_may_move_together(from_file, tmp_path, plan_for):
    pruned = pruned_on_disk(from_file("chain"), plan_for, tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    for name in ("run", "user"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    assert bit_equal(pruned, load_model(str(tmp_path / "elsewhere" / "run")))


def test_a_factory_that_moved_away_is_named(from_file, tmp_path, plan_for):
    pruned_on_disk(from_file("chain"), plan_for, tmp_path / "run")
    (tmp_path / "user" / "nets.py").rename(tmp_path / "user" / "other.py")
    with pytest.raises(InputError, match=r"chain\(\).*nets\.py, which is no longer there"):
        load_model(str(tmp_path / "run"))


def test_a_factory_that_changed_does_not_pass_in_silence(from_file, tmp_path, plan_for):
    pruned_on_disk(from_file("chain"), plan_for, tmp_path / "run")
    file = tmp_path / "user" / "nets.py"
    file.write_text(
        file.read_text()
        .replace("nn.Conv2d(8, 16, 3, 2, 1, bias=False)", "nn.Conv2d(8, 24, 3, 2, 1, bias=False)")
        .replace("self.bn2 = nn.BatchNorm2d(16)\n        self.relu", "self.bn2 = nn.BatchNorm2d(24)\n        self.relu")
        .replace(
            "self.pool = nn.AdaptiveAvgPool2d(1)\n        self.head = nn.Linear(16, 4)",
            "self.pool = nn.AdaptiveAvgPool2d(1)\n        self.head = nn.Linear(24, 4)",
        )
    )
    with pytest.raises(InputError, match=r"conv2|bn2|head"):
        load_model(str(tmp_path / "run"))


def test_an_edited_plan_is_refused(tmp_path, plan_for):
    pruned_on_disk(load_model("digits"), plan_for, tmp_path)
    path = tmp_path / "plan.json"
    path.write_text(path.read_text().replace('"fraction": 0.5', '"fraction": 0.4'))
    with pytest.raises(InputError, match="not the plan"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("file", ["plan.json", "model.safetensors"])
def test_a_missing_file_of_a_run_is_named(tmp_path, plan_for, file):
    pruned_on_disk(load_model("digits"), plan_for, tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(InputError, match=file):
        load_model(str(tmp_path))


def test_a_damaged_run_is_named(tmp_path, plan_for):
    pruned_on_disk(load_model("digits"), plan_for, tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        load_model(str(tmp_path))


def test_someone_elses_safetensors_are_no_run(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="not written by secateur"):
        load_model(str(tmp_path))


def test_a_run_takes_no_weights(tmp_path, plan_for):
    pruned_on_disk(load_model("digits"), plan_for, tmp_path)
    with pytest.raises((InputError, UsageError), match="--weights"):
        load_model(str(tmp_path), "w.pth")


def test_saving_leaves_no_litter(tmp_path, plan_for):
    network = load_model("digits")
    plan = plan_for(network)
    save_network(surgery.cut(network, plan), tmp_path, "0" * 64)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
