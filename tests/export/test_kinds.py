"""Networks that people bring, planned, cut and exported: the ONNX file answers as the original with masks."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from masking import without

import zoo_kinds
from secateur.explain.ranking import rank_kernels
from secateur.explain.scores import RankingTask
from secateur.explain.unit_scores import score_units
from secateur.export.onnx.cleaning.clean import clean_graph
from secateur.export.onnx.model import export_onnx
from secateur.network.channels.follow import find_groups
from secateur.network.hooks import pick_logits
from secateur.network.load import load_model
from secateur.prune.cost import measure_cost
from secateur.prune.planning import plan_pruning
from secateur.prune.settings import BudgetSettings
from secateur.prune.surgery import cut

ROWS = (
    "same_padding_static", "same_padding_dynamic", "standardised_weights", "functional_convolution", "einsum_over_channels",
    "matmul_over_channels", "weight_norm", "spectral_norm", "old_weight_norm", "glu", "c2f", "simple_gate", "split_reordered",
    "slices_reordered", "channel_shuffle", "shuffle_unit", "maxout_chunks", "non_local", "attention_over_places", "mask_buffer",
    "positional_embedding", "frozen_batch_norm", "blur_groups_number", "flat_numbers", "maps_from_numbers", "pixel_unshuffle",
    "strided_slices", "two_heads", "features_and_logits", "cosine_parameter", "resized_by_scale", "lazy_layers",
    "decides_on_values", "position_bias", "vision_transformer", "shifted_windows",
)  # fmt: skip
"""At least one for every way in which channels were hidden; ``make test-all`` takes all kinds."""
REST = sorted(set(zoo_kinds.KINDS) - set(ROWS) - {"dropout_always", "scales_by_a_value"})
MACS = 0.7


def load(name, folder):
    weights = None
    if name in zoo_kinds.LAZY:
        weights = folder / "weights.pth"
        torch.save(zoo_kinds.build(name).state_dict(), weights)
    return load_model(f"{zoo_kinds.__file__}:{name}", weights and str(weights))


def without_streams(groups):
    """Keep the channels over which a norm takes its mean: it would be another mean, not the one of masked channels."""
    return [
        replace(group, locked=group.locked or "in a norm's mean")
        if any(member.kind == "mixing_norm" for member in group.members)
        else group
        for group in groups
    ]


@pytest.mark.parametrize("name", [*ROWS, *(pytest.param(name, marks=pytest.mark.long) for name in REST)])
def test_the_pruned_file_answers_as_the_masked_original(name, tmp_path, noise_images):
    network = load(name, tmp_path)
    groups = find_groups(network.module, network.example())
    scores = rank_kernels(RankingTask(network, noise_images(8, network.input_shape, 10)), "magnitude")
    costs, budget = measure_cost(network), BudgetSettings(macs=MACS)
    plan = plan_pruning(without_streams(groups), score_units(groups, scores), costs, budget)
    masks_tell = not plan.missed
    if plan.missed:
        plan = plan_pruning(groups, score_units(groups, scores), costs, budget)
    assert plan.missed == ""
    assert plan.after.macs <= MACS * plan.before.macs
    small = cut(network, plan)
    file = export_onnx(small, tmp_path / "small.onnx").path
    images = network.example(3, seed=5)
    removed = {group.name: group.removed for group in plan.groups if group.removed}
    reference = (network if masks_tell else small).copy().module
    with without(reference, groups, removed if masks_tell else {}), torch.no_grad():
        single = pick_logits(reference(images)).numpy()
        expected = pick_logits(reference.double()(images.double())).numpy()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    rounding = np.abs(single - expected).max()
    assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max()) + 2 * rounding
    assert rounding < 1e-4


CLEANED = {
    "einsum_over_channels",
    "layer_norm_by_hand",
    "multihead_attention",
    "shortcut_joined_with_zeros",
    "shortcut_padded",
}
"""The kinds whose files hold something that cleaning removes."""


@pytest.mark.parametrize(
    "name",
    [*sorted(CLEANED), *(pytest.param(name, marks=pytest.mark.long) for name in sorted({*ROWS, *REST} - CLEANED))],
)
def test_the_clean_file_answers_as_the_exported_one(name, tmp_path):
    network = load(name, tmp_path)
    before = onnx.load(export_onnx(network, tmp_path / "unclean.onnx", clean=False).path)
    after = onnx.ModelProto()
    after.CopyFrom(before)
    clean_graph(after)
    onnx.checker.check_model(after, full_check=True)
    assert len(after.graph.node) - len(before.graph.node) <= -(name in CLEANED)
    images = {"images": network.example(4, seed=1).numpy()}
    first, second = (
        onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, images)[0]
        for proto in (before, after)
    )
    assert np.abs(first - second).max() <= 1e-6 * np.abs(first).max()
