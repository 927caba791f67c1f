import importlib.util
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision import models

from secateur.common.errors import InputError, UsageError
from secateur.network.checks import check_network
from secateur.network.hooks import pick_logits
from secateur.network.images.load import load_images
from secateur.network.load import load_model, match_classes
from secateur.network.saved import save_network
from secateur.network.settings import ModelSettings
from secateur.prune import surgery
from secateur.prune.repair.repair import repair


@pytest.fixture
def user_file(tmp_path):
    def write(
        body, shape="INPUT_SHAPE = (3, 8, 8)", normalisation='NORMALISATION = {"mean": (0.5,) * 3, "std": (0.25,) * 3}'
    ):
        path = tmp_path / "mine.py"
        path.write_text(f"import torch\nfrom torch import nn\n{shape}\n{normalisation}\n{body}\n")
        return path

    return write


SMALL = """
def build():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
"""


def test_digits_come_with_their_weights():
    network = load_model("digits")
    splits = load_images("digits", network.preprocessing)
    batch = network.preprocessing.normalise(splits.test.pixels())
    with torch.no_grad():
        accuracy = float((network.module(batch).argmax(1) == splits.test.labels).double().mean())
    assert accuracy > 0.95
    assert network.class_names == tuple("0123456789")
    assert not network.module.training


def test_a_factory_gives_its_network_and_declarations(networks_file, tiny, tmp_path):
    source = tiny("padded", 4)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    network = load_model(f"{networks_file}:padded", str(tmp_path / "w.pth"))
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(network.logits(x), source(x))
    assert network.input_shape == (3, 12, 12)
    assert network.preprocessing.mean == (0.5, 0.4, 0.3)
    assert network.preprocessing.std == (0.25, 0.2, 0.3)


def test_a_torchvision_name_with_a_file_takes_its_class_count_and_declarations(tmp_path, large):
    source = large("resnet18")
    torch.save(source.state_dict(), tmp_path / "w.pth")
    network = load_model("resnet18", str(tmp_path / "w.pth"))
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(network.logits(x), source(x))
    assert network.input_shape == (3, 224, 224)
    assert network.preprocessing.mean == (0.485, 0.456, 0.406)
    assert network.preprocessing.resize == 256
    assert network.class_names == ()


def test_settings_come_before_what_the_file_declares(user_file):
    path = user_file(SMALL)
    settings = ModelSettings(model=f"{path}:build", input_shape=(3, 16, 10), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    found = load_model(settings).preprocessing
    assert (found.input_shape, found.mean, found.std) == ((3, 16, 10), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"shape": ""}, ("INPUT_SHAPE", "--input-shape")), ({"normalisation": ""}, ("NORMALISATION", "--mean", "--std"))],
)
def test_what_is_not_declared_is_asked_for(user_file, options, words):
    path = user_file(SMALL, **options)
    with pytest.raises(InputError) as caught:
        load_model(f"{path}:build")
    assert all(word in str(caught.value) for word in words)
    given = ModelSettings(model=f"{path}:build", input_shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.2,) * 3)
    assert load_model(given).input_shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"normalisation": 'NORMALISATION = {"mean": (0.5,), "std": (0.2,)}'},
            "1 means and 1 standard deviations for 3",
        ),
        ({"normalisation": 'NORMALISATION = {"mean": (0.5,) * 3, "std": (0.0,) * 3}'}, "positive deviations"),
        ({"normalisation": 'NORMALISATION = {"mean": (float("nan"),) * 3, "std": (0.2,) * 3}'}, "finite"),
        ({"normalisation": "NORMALISATION = (0.5, 0.2)"}, "NORMALISATION must be"),
        ({"normalisation": 'NORMALISATION = {"mean": "abc", "std": (0.2,) * 3}'}, "not numeric"),
        ({"shape": "INPUT_SHAPE = (8, 8)"}, "not numeric"),
        ({"shape": "INPUT_SHAPE = (3, 2, 2)"}, "fails on an input of 3x2x2"),
        (
            {"shape": "INPUT_SHAPE = (1, 8, 8)", "normalisation": 'NORMALISATION = {"mean": (0.5,), "std": (0.2,)}'},
            "1x8x8",
        ),
    ],
)
def test_declarations_that_cannot_be(user_file, options, words):
    with pytest.raises(InputError, match=words):
        load_model(f"{user_file(SMALL, **options)}:build")


@pytest.mark.parametrize(
    ("body", "function", "words"),
    [
        (SMALL, "bild", "build"),
        ("def build():\n    return 5", "build", "returned int, not an nn.Module"),
        ("def build():\n    return nn.Linear", "build", "not an nn.Module"),
        ("def build():\n    raise KeyError('layer9')", "build", "KeyError.*layer9"),
        ("def build(size):\n    return nn.Linear(size, 2)", "build", "TypeError"),
        ("1 / 0", "build", "ZeroDivisionError"),
        (
            "class Net(nn.Module):\n    def forward(self, x):\n        raise ValueError('odd')\nbuild = Net",
            "build",
            "odd",
        ),
        ("build = nn.Identity", "build", "3x8x8"),
    ],
)
def test_factories_that_fail_are_explained(user_file, body, function, words):
    with pytest.raises(InputError, match=words):
        load_model(f"{user_file(body)}:{function}")


def test_a_missing_factory_file(tmp_path):
    with pytest.raises(InputError, match=r"gone\.py does not exist"):
        load_model(f"{tmp_path / 'gone.py'}:build")


@pytest.mark.parametrize(
    ("typo", "meant"), [("resnt18", "resnet18"), ("mobilnet_v2", "mobilenet_v2"), ("digit", "digits")]
)
def test_a_misspelt_name_brings_the_right_one(typo, meant):
    with pytest.raises(InputError, match=rf"Did you mean .*\b{meant}\b"):
        load_model(typo)


def test_misspelt_torchvision_weights_list_the_real_ones():
    with pytest.raises(InputError, match="IMAGENET1K_V1"):
        load_model("resnet18", "IMAGENET1K_V9")


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_timm_missing_says_how_to_get_it():
    with pytest.raises(InputError, match=r"secateur\[timm\]"):
        load_model("timm:resnet10t")


def test_a_timm_network_with_a_file(tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    source = timm.create_model("resnet10t", num_classes=5).eval()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    network = load_model("timm:resnet10t", str(tmp_path / "w.pth"))
    x = network.example()
    with torch.no_grad():
        assert torch.equal(network.logits(x), source(x))
    assert network.input_shape == tuple(source.pretrained_cfg["input_size"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_of_another_precision_become_float32(networks_file, tiny, tmp_path, dtype):
    source = tiny("chain")
    torch.save({name: tensor.to(dtype) for name, tensor in source.state_dict().items()}, tmp_path / "w.pth")
    module = load_model(f"{networks_file}:chain", str(tmp_path / "w.pth")).module
    for name, tensor in module.named_parameters():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, source.get_parameter(name).to(dtype).float())


def test_weights_of_another_class_count_name_the_head(networks_file, tiny, tmp_path):
    state = tiny("chain").state_dict()
    state["head.weight"], state["head.bias"] = torch.zeros(7, 16), torch.zeros(7)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"head\.(weight is 7x16|bias is 7).*class counts differ"):
        load_model(f"{networks_file}:chain", str(tmp_path / "w.pth"))


def test_weights_of_another_model_name_what_lacks(networks_file, tiny, tmp_path):
    torch.save(tiny("dense").state_dict(), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"lacks bn1\.bias.*has, but the model does not, first\.bias"):
        load_model(f"{networks_file}:chain", str(tmp_path / "w.pth"))


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_class_scores_inside_something(networks, network_of, kind):
    wrapped = networks.Wrapped(kind).eval()
    network = check_network(network_of(wrapped))
    x = network.example()
    assert torch.equal(network.logits(x), wrapped.inner(x))


def test_class_scores_under_the_name_logits():
    scores = torch.randn(2, 5)
    assert pick_logits(SimpleNamespace(logits=scores)) is scores


@pytest.mark.parametrize("name", ["googlenet", pytest.param("inception_v3", marks=pytest.mark.slow)])
def test_auxiliary_heads_in_the_weights_do_no_harm(tmp_path, shake, name):
    source = shake(models.get_model(name, weights=None, init_weights=False, num_classes=5, aux_logits=True))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    network = load_model(name, str(tmp_path / "w.pth"))
    x = network.example(1)
    with torch.no_grad():
        assert torch.equal(network.logits(x), source(x))
        network.module.train()
        assert pick_logits(network.module(torch.cat([x, x]))).shape == (2, 5)


def splits_named(names, classes=3):
    from secateur.network.images.images import images_from_tensor
    from secateur.network.images.pictures import Preprocessing
    from secateur.network.images.splits import make_splits

    preprocessing = Preprocessing((3, 12, 12), (0.0,) * 3, (1.0,) * 3)
    labels = torch.arange(6) % classes
    part = images_from_tensor(torch.zeros(6, 3, 12, 12), labels, preprocessing)
    return make_splits({"train": part, "val": part, "test": part}, names, ())


def with_classes(network_of, networks, names, classes=3):
    module = networks.Chain()
    module.head = nn.Linear(16, classes)
    return replace(network_of(module), class_names=names)


def test_class_counts_must_agree(network_of, networks):
    with pytest.raises(InputError, match="head has 4 classes, the data have 3"):
        match_classes(with_classes(network_of, networks, (), 4), splits_named(("a", "b", "c")))


def test_undeclared_names_come_from_the_data(network_of, networks):
    network, splits = match_classes(with_classes(network_of, networks, ()), splits_named(("a", "b", "c")))
    assert network.class_names == ("a", "b", "c")
    assert splits.train.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_names_in_another_order_relabel_the_images(network_of, networks):
    before = splits_named(("a", "b", "c"))
    network, splits = match_classes(with_classes(network_of, networks, ("c", "a", "b")), before)
    for name in ("train", "validation", "test"):
        old, new = getattr(before, name).labels.tolist(), getattr(splits, name).labels.tolist()
        assert [network.class_names[label] for label in new] == [before.class_names[label] for label in old]
        assert new == [1, 2, 0, 1, 2, 0]
    assert splits.class_names == network.class_names


def test_other_names_are_refused(network_of, networks):
    with pytest.raises(InputError, match="'b', 'z'"):
        match_classes(with_classes(network_of, networks, ("a", "z", "c")), splits_named(("a", "b", "c")))


def test_torchvisions_names_give_way_to_the_folders(network_of, networks):
    network = replace(with_classes(network_of, networks, ("tench", "cock", "hen")), notes=("declared by torchvision",))
    network, splits = match_classes(network, splits_named(("n01440764", "n01514668", "n01514859")))
    assert network.class_names == splits.class_names == ("n01440764", "n01514668", "n01514859")
    assert splits.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert any("sorted folder names" in note for note in splits.notes)


def test_declared_names_must_be_as_many_as_outputs(network_of, networks):
    with pytest.raises(InputError, match="2 class names, but its head has 3"):
        check_network(with_classes(network_of, networks, ("a", "b")))


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
