import collections
import io
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from secateur.common.errors import InputError
from secateur.network.checkpoints import load_tensors, read_checkpoint
from secateur.network.images.load import load_images
from secateur.network.load import load_model


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "conv.bias": torch.randn(4, generator=generator),
        "count": torch.tensor(7),
    }


def same(found, wanted):
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_every_form_gives_the_tensors_that_were_saved(tmp_path, weights, form):
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=form == "zip")
    assert same(read_checkpoint(path), weights)


def test_safetensors_are_known_by_their_content(tmp_path, weights):
    path = tmp_path / "weights.bin"
    save_file(weights, path)
    assert same(read_checkpoint(path), weights)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"state_dict": w, "epoch": 3},
        lambda w: {"model": w, "optimizer": {"state": {}}},
        lambda w: {"model_state_dict": w},
        lambda w: {"net": {"state_dict": w}},
        lambda w: {f"module.{name}": tensor for name, tensor in w.items()},
        lambda w: {"state_dict": {f"module.{name}": tensor for name, tensor in w.items()}, "best": 91.2},
        lambda w: {f"module._orig_mod.{name}": tensor for name, tensor in w.items()},
        lambda w: {f"_orig_mod.{name}": tensor for name, tensor in w.items()},
        lambda w: {f"_orig_mod.module.{name}": tensor for name, tensor in w.items()},
        collections.OrderedDict,
    ],
    ids=[
        "state_dict",
        "model",
        "model_state_dict",
        "nested",
        "module.",
        "both",
        "ddp+compile",
        "compile",
        "compile+ddp",
        "ordered",
    ],
)
def test_wrappers_and_prefixes_come_off(tmp_path, weights, wrap):
    torch.save(wrap(weights), tmp_path / "w.pth")
    assert same(read_checkpoint(tmp_path / "w.pth"), weights)


def refused(path, *words):
    with pytest.raises(InputError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert str(path) in message, message
    assert any(word in message for word in words), message
    assert len(message) < 700, message
    return message


def test_missing_empty_and_folder(tmp_path):
    (tmp_path / "empty.pth").touch()
    refused(tmp_path / "none.pth", "do not exist")
    refused(tmp_path / "empty.pth", "empty")
    refused(tmp_path, "folder")


@pytest.mark.parametrize("share", [0.001, 0.02, 0.3, 0.6, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_truncated_files(tmp_path, weights, form, share):
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    weights["large"] = torch.zeros(500)
    if form == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: max(1, int(share * len(content)))])
    refused(path, "truncated", "corrupt")


def test_a_git_lfs_pointer(tmp_path):
    path = tmp_path / "w.pth"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n")
    refused(path, "git-LFS")


def test_a_web_page_in_place_of_the_weights(tmp_path):
    path = tmp_path / "w.pth"
    path.write_text("<!DOCTYPE html><html><body>404: not found</body></html>")
    refused(path, "not a torch checkpoint", "not a checkpoint")


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_pickled_module(tmp_path, form):
    path = tmp_path / "w.pth"
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3)), path, _use_new_zipfile_serialization=form == "zip")
    refused(path, "pickled Python objects")


def test_a_torchscript_archive(tmp_path):
    path = tmp_path / "w.pt"
    torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())).save(str(path))
    refused(path, "TorchScript")


def test_a_deflated_archive(tmp_path, weights):
    path = tmp_path / "w.pth"
    torch.save(weights, path)
    content = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(content) as stored, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))
    refused(path, "compressed")


def test_another_zip_archive(tmp_path):
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    refused(path, "not one that torch.save wrote")


class Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
def test_a_malicious_pickle_is_not_executed(tmp_path, form):
    path, trace = tmp_path / "w.pth", tmp_path / "executed"
    if form == "bare":
        path.write_bytes(pickle.dumps(Attack(trace)))
    else:
        torch.save({"a": Attack(trace)}, path, _use_new_zipfile_serialization=form == "zip")
    refused(path, "pickled Python objects", "not a torch checkpoint")
    assert not trace.exists()
    pickle.loads(pickle.dumps(Attack(trace)))
    assert trace.exists(), "the attack itself must work, or this test proves nothing"


@pytest.mark.parametrize("value", [{"epoch": 3, "acc": 0.9}, {}, [1, 2], 5, torch.zeros(3), {"state_dict": {}}])
def test_something_without_tensors_by_name(tmp_path, value):
    torch.save(value, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "not tensors by parameter name", "hold no tensors")


def test_an_empty_safetensors_file(tmp_path):
    save_file({}, tmp_path / "w.safetensors")
    refused(tmp_path / "w.safetensors", "no tensors")


def test_a_safetensors_name_on_something_else(tmp_path, weights):
    torch.save(weights, tmp_path / "w.safetensors")
    refused(tmp_path / "w.safetensors", "not a safetensors file")


@pytest.mark.parametrize(
    ("name", "published"), [("resnet20-12fca82f.th", 0.269722), ("resnet56-4bfd9763.th", 0.853018)]
)
def test_real_checkpoints_in_the_old_format(shared, name, published):
    factory = name.partition("-")[0]
    path = shared / "models" / name
    network = load_model(f"{shared / 'models' / 'resnet_cifar.py'}:{factory}", str(path))
    raw = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    own = network.module.state_dict()
    assert set(own) - {key.removeprefix("module.") for key in raw} <= {
        k for k in own if "num_batches" in k or "zeropadchannels" in k
    }
    for key, tensor in raw.items():
        assert torch.equal(own[key.removeprefix("module.")], tensor.float())
    parameters = sum(parameter.numel() for parameter in network.module.parameters())
    assert round(parameters / 1e6, 2) == round(published, 2)
    assert all(tensor.device.type == "cpu" for tensor in own.values())


def test_real_weights_recognise_real_images(shared, cifar):
    from secateur.network.evaluation import evaluate

    models = shared / "models"
    network = load_model(f"{models / 'resnet_cifar.py'}:resnet20", str(models / "resnet20-cifar10-jpeg.pth"))
    splits = load_images(str(cifar), network.preprocessing)
    assert evaluate(network.logits, splits.test).accuracy > 0.75


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
    with pytest.raises(InputError, match=r"the file lacks bn1\.bias.*the model lacks first\.bias"):
        load_model(f"{networks_file}:chain", str(tmp_path / "w.pth"))


class Versioned(nn.Module):
    """As torchvision's MNASNet: its loading asks for the version of what it loads."""

    _version = 2

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x).mean((2, 3))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        if local_metadata.get("version") not in (1, 2):
            raise ValueError("version should be set to 1 or 2")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def test_layers_learn_the_version_of_what_they_load():
    module, tensors = Versioned(), Versioned().state_dict()
    load_tensors(module, dict(tensors), "weights")
    assert same(module.state_dict(), tensors)
