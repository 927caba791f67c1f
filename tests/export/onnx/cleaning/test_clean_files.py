"""Files of real architectures, with and without blocks: how many operations and reorders ONNX Runtime is left with."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from secateur.export.onnx.cleaning.clean import clean_graph
from secateur.export.onnx.model import export_onnx
from secateur.network.channels.cut import apply_cut, cut_of
from secateur.network.channels.follow import find_groups
from secateur.network.graph.stand_ins import Constant
from secateur.network.load import load_model

BLOCKS = {
    "identity": ("layer1.0", "layer3.1"),
    "downsampling": ("layer2.0",),
    "both": ("layer1.1", "layer2.0", "layer2.1"),
}


@pytest.fixture(scope="module")
def network(shared, large, network_of):
    def build(name):
        if name == "resnet18":
            return network_of(large(name), (3, 64, 64), 5)
        models = shared / "models"
        weights = models / f"{name}-cifar10-jpeg.pth"
        if not weights.is_file():
            pytest.skip(f"{weights} is not there")
        return load_model(f"{models / 'resnet_cifar.py'}:{name}", str(weights))

    return build


def without(network, blocks, share=0.0):
    """A network without the branches of some blocks, which leave constants, and with fewer channels inside the others."""
    removed, generator = {}, torch.Generator().manual_seed(0)
    for group in find_groups(network.module, network.example()):
        if group.branch.rpartition(".")[0] in blocks and group.branch:
            removed[group.name] = list(range(group.units))
        elif not group.locked and share:
            removed[group.name] = list(range(8 * round(share * group.units / 8)))
    cut = cut_of(find_groups(network.module, network.example()), removed)
    module = apply_cut(network.module, cut, network.example(1)).eval()
    for child in module.modules():
        if isinstance(child, Constant):
            nn.init.normal_(child.bias, 0, 0.3, generator=generator)
    return replace(network, module=module, cuts=(cut,))


def files(network, folder):
    """The file as torch exports it, and the same cleaned."""
    before = onnx.load(export_onnx(network, folder / "unclean.onnx", clean=False).path)
    after = onnx.ModelProto()
    after.CopyFrom(before)
    clean_graph(after)
    onnx.checker.check_model(after, full_check=True)
    return before, after


def reorders(counts):
    return counts["ReorderInput"] + counts["ReorderOutput"]


def scores(model, images):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images.numpy()})[0]


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        *(("resnet20", blocks) for blocks in ("", *BLOCKS)),
        *(("resnet18", blocks) for blocks in ("", "both")),
        ("resnet56", "both"),
    ],
)
def test_one_reorder_is_left(network, optimised, tmp_path, name, blocks):
    subject = network(name)
    if blocks:
        subject = without(subject, BLOCKS[blocks])
    before, after = files(subject, tmp_path)
    assert len(after.graph.node) <= len(before.graph.node)
    was, left = optimised(before), optimised(after)
    assert reorders(left) <= 1
    assert left.total() <= was.total()
    if blocks or name != "resnet18":
        assert reorders(was) > 4
    images = subject.example(4, seed=2)
    first, second = scores(before, images), scores(after, images)
    assert np.abs(first - second).max() <= 1e-6 * np.abs(first).max()


def test_nodes_of_a_network_without_blocks(network, tmp_path):
    """Of ResNet-20 19 convolutions, 19 activations, 9 sums, the mean and the head; two shortcuts are convolutions.

    A block without its branch leaves a sum with a constant and an activation; at a downsampling join only the shortcut and the
    activation.
    """
    subject = network("resnet20")
    assert len(files(subject, tmp_path)[1].graph.node) == 19 + 19 + 9 + 2 + 2
    convolution, activation, addition = 1, 1, 1
    small = without(subject, ("layer1.0",))
    assert len(files(small, tmp_path)[1].graph.node) == 51 - 2 * convolution - activation
    small = without(subject, ("layer2.0",))
    assert len(files(small, tmp_path)[1].graph.node) == 51 - 2 * convolution - activation - addition


def test_a_block_whose_constant_is_zero_leaves_nothing(network, tmp_path):
    small = without(network("resnet20"), ("layer1.0", "layer3.2"))
    for name in ("layer1.0", "layer3.2"):
        block = small.module.get_submodule(name)
        for zero in (block.conv2.bias, block.bn2.bias, block.bn2.running_mean):
            nn.init.zeros_(zero)
    after = files(small, tmp_path)[1]
    assert len(after.graph.node) == 51 - 2 * (2 + 2 + 1)
    assert not any("layer1.0" in tensor.name for tensor in after.graph.initializer)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_cut_shortcuts_are_convolutions(network, optimised, tmp_path, share):
    small = without(network("resnet20"), (), share)
    before, after = files(small, tmp_path)
    assert {"Gather", "Slice", "Mul"} <= {node.op_type for node in before.graph.node}
    assert {node.op_type for node in after.graph.node} == {"Conv", "Relu", "Add", "ReduceMean", "Gemm"}
    assert reorders(optimised(after)) <= 1
