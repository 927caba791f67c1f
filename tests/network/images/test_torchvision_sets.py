import pickle
import struct

import numpy as np
import pytest

from secateur.common.errors import InputError, UsageError
from secateur.network.images.load import load_images
from secateur.network.images.pictures import Preprocessing

COLOUR = Preprocessing((3, 8, 8), (0.0,) * 3, (1.0,) * 3)


def write_cifar10(place):
    generator = np.random.default_rng(0)
    base = place / "cifar-10-batches-py"
    base.mkdir()
    written = {}
    for name in [*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]:
        data = generator.integers(0, 256, (40, 3072), dtype=np.uint8)
        labels = [index % 10 for index in range(40)]
        (base / name).write_bytes(pickle.dumps({"data": data, "labels": labels}))
        written[name] = data.reshape(40, 3, 32, 32)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    return written, names


def test_cifar10_in_torchvisions_files(tmp_path, monkeypatch):
    import torchvision

    written, names = write_cifar10(tmp_path)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *args, **kwargs: True)
    splits = load_images(f"cifar10:{tmp_path}", Preprocessing((3, 32, 32), (0.0,) * 3, (1.0,) * 3))
    assert list(splits.class_names) == names
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (180, 20, 40)
    assert np.array_equal(splits.test.pixels().numpy(), written["test_batch"])
    whole = np.concatenate([written[f"data_batch_{index}"] for index in range(1, 6)])
    rows = [int(name) for name in splits.train.names]
    assert np.array_equal(splits.train.pixels().numpy(), whole[rows])
    assert splits.train.labels.tolist() == [row % 10 for row in rows]


def test_fashion_mnist_in_torchvisions_files(tmp_path):
    base = tmp_path / "FashionMNIST" / "raw"
    base.mkdir(parents=True)
    pixels = {}
    for part, count in (("train", 60), ("t10k", 20)):
        pixels[part] = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        (base / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 2051, count, 28, 28) + pixels[part].tobytes()
        )
        (base / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
    splits = load_images(f"fashion-mnist:{tmp_path}", Preprocessing((1, 28, 28), (0.0,), (1.0,)))
    assert np.array_equal(splits.test.pixels()[:, 0].numpy(), pixels["t10k"])
    assert splits.test.labels.tolist() == [index % 10 for index in range(20)]
    assert splits.class_names[0] == "T-shirt/top"


def test_a_torchvision_set_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="CIFAR10"):
        load_images(f"cifar10:{tmp_path}", COLOUR)
    with pytest.raises(UsageError, match="cifar10:DIR"):
        load_images("cifar10:", COLOUR)


def test_images_of_another_size_than_the_model(tmp_path, monkeypatch):
    import torchvision

    write_cifar10(tmp_path)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *args, **kwargs: True)
    with pytest.raises(InputError, match=r"3x32x32.*3x8x8"):
        load_images(f"cifar10:{tmp_path}", COLOUR)
