"""Training a network with PICNN's pathway (Guo et al., AAAI 2024, arXiv:2312.12068)."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ...common.errors import InputError
from ...common.progress import Progress, silent
from ...network.graph.target_layer import NEW_TARGET, NewLayer, find_target, insert_layer
from ...network.graph.trace import trace
from ...network.hooks import seeded
from ...network.images.images import Images
from ...network.images.splits import Splits
from ...network.network import Network
from ...network.training import History, Judged, TrainingSettings, train
from ..settings import PicnnSettings
from .entanglement import predict_pathways
from .membership import Membership, membership_of, with_membership
from .pathway import Pathway


@dataclass(frozen=True)
class TrainedPicnn:
    """A network trained with its pathway, the membership of its filters, and the training history."""

    network: Network
    pathway: Pathway
    membership: Membership
    history: History


def with_new_layer(network: Network, settings: PicnnSettings, seed: int = 0) -> tuple[Network, PicnnSettings]:
    """Insert the new layer of the settings, untrained; returns the network, and the settings with that layer as the target.

    Both are returned unchanged if the settings have no new layer.

    Raises:
        InputError: the layer cannot be inserted, or the network already has one or was pruned.
    """
    width = settings.filters
    if settings.filters_per_class is not None:
        with torch.no_grad():
            classes = network.logits(network.example()).shape[1]
        width = max(2, round(settings.filters_per_class * classes))
    if width is None:
        return network, settings
    if network.new_layer is not None:
        raise InputError(
            f"The network already has a new layer after {network.new_layer.after}. Leave out --filters, or start from the "
            "network without it."
        )
    if network.cuts:
        raise InputError(
            "A new layer cannot be inserted into a pruned network, whose cuts were planned without it. Insert it into the "
            "original, train that, and then prune it."
        )
    view = trace(network.module, network.example())
    layer = NewLayer(find_target(view, network.example(), settings.target).name, width)
    module = insert_layer(network.module, network.example(), layer, seed)
    settings = replace(settings, target=NEW_TARGET, filters=None, filters_per_class=None)
    return replace(network, module=module, new_layer=layer), settings


def train_picnn(
    network: Network,
    splits: Splits,
    settings: PicnnSettings,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
    discriminate: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    start: Membership | None = None,
    training: TrainingSettings | None = None,
    checkpoint: Path | None = None,
) -> TrainedPicnn:
    """Train a network and the assignment of its target layer's filters jointly; the given network is not changed.

    Uses Adam with a cosine schedule from ``learning_rate`` to ``final_learning_rate``. The best epoch is the one with the
    highest ``(ACC1 + lambda ACC2) / (1 + lambda)`` on validation images (ACC1 if P is not learned).

    Args:
        discriminate: the discrimination pathway's loss of (scores, images, labels); cross-entropy if None.
        start: a membership of the same layer to initialise P with.
        training: another optimizer and schedule.
        checkpoint: a file that is written after every epoch, and resumed from if it exists.

    Raises:
        InputError: the network cannot be traced or has no target layer.
    """
    pathway = Pathway(network, settings, seed) if start is None else with_membership(network, settings, start, seed)
    flip = settings.flip if settings.flip is not None else network.input_shape[0] == 3
    training = training or TrainingSettings(
        settings.epochs, settings.batch_size, settings.learning_rate, settings.weight_decay, flip, seed, device, "adam",
        warm_up=0.0, final_share=settings.final_learning_rate / settings.learning_rate,
    )  # fmt: skip
    training = replace(training, rates={"assignment": settings.membership_rate})

    loss = pathway.objective(discriminate) if discriminate else pathway.objective()
    with seeded(seed):
        history = train(
            pathway,
            splits.train,
            loss,
            partial(_judge, images=splits.validation, seed=seed, device=device),
            training,
            progress,
            forward=lambda module, images, labels: module(images, pathway.classes_for(labels)),
            after_step=pathway.assignment.project,
            checkpoint=checkpoint,
        )
    details = {"post hoc": False, "epochs": training.epochs, "seed": seed}
    trained = replace(network, module=_module_of(network, pathway))
    return TrainedPicnn(trained, pathway, membership_of(pathway, network, details), history)


def _judge(pathway: nn.Module, images: Images, seed: int, device: str) -> Judged:
    """Loss and accuracies on validation images; ``(ACC1 + lambda ACC2) / (1 + lambda)`` determines the best epoch."""
    assert isinstance(pathway, Pathway)
    found = predict_pathways(pathway, images, seed=seed, device=device, draws=1)
    right = float(found.right.double().mean())
    if not pathway.assignment.learned:
        return Judged(found.loss, right)
    weight = pathway.settings.weight
    own, others = (float(part.double().mean()) for part in (found.cluster_right, found.complement_right))
    merit = (right + weight * own) / (1 + weight)
    loss = found.loss + weight * found.cluster_loss
    return Judged(loss, right, merit, {"acc2": own, "acc3": others, "interpretation_loss": found.cluster_loss})


def _module_of(network: Network, pathway: Pathway) -> nn.Module:
    """A copy of the network's own module with the weights of the pathway's copy."""
    module = copy.deepcopy(network.module)
    trained = pathway.parts.whole_state()
    module.load_state_dict({name: trained.get(name, value) for name, value in module.state_dict().items()})
    return module.to("cpu").eval()
