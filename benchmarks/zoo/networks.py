"""The networks of the zoo, and how each is built with seeded random weights at the smallest size it takes."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 10
SIZES = (64, 96, 128, 160, 192, 224, 256, 299, 384)
"""Pixels that are tried, the first that the network takes."""
BATCH = 8
"""Noise images that give the batch norms their statistics."""

TORCHVISION = (
    "squeezenet1_1", "mnasnet0_5", "shufflenet_v2_x0_5", "mobilenet_v3_small", "mobilenet_v2", "alexnet", "resnet18",
    "regnet_x_400mf", "regnet_y_400mf", "efficientnet_b0", "vgg11", "vgg11_bn", "resnet50", "resnext50_32x4d", "googlenet",
    "densenet121", "inception_v3", "wide_resnet50_2", "efficientnet_v2_s", "convnext_tiny", "swin_t", "swin_v2_t", "vit_b_16",
    "maxvit_t",
)  # fmt: skip
"""A small network of every classification family of torchvision."""

TIMM = (
    # convolutions only, with at most squeeze-and-excitation
    "resnet18", "resnet26t", "resnext26ts", "seresnext26t_32x4d", "res2net50_26w_4s", "resnest14d", "skresnet18",
    "ecaresnet26t", "resnetv2_50x1_bit", "nf_resnet26", "nfnet_l0", "densenet121", "dla46_c", "ese_vovnet19b_slim",
    "regnetx_002", "regnety_002", "efficientnet_b0", "tf_efficientnet_b0", "tf_efficientnetv2_b0", "efficientnet_lite0",
    "mixnet_s", "mnasnet_small", "mobilenetv2_050", "mobilenetv3_small_050", "mobilenetv4_conv_small", "ghostnet_050",
    "fbnetc_100", "rexnet_100", "hardcorenas_a", "lcnet_050", "tinynet_e", "mobileone_s0", "repvgg_a0", "repghostnet_050",
    "repvit_m0_9", "convnext_atto", "convnextv2_atto", "convmixer_768_32", "inception_v4", "xception41", "hrnet_w18_small",
    "cspdarknet53", "darknet17", "selecsls42b", "gernet_s", "dpn68", "inception_next_atto", "starnet_s1",
    # with attention, or without convolutions
    "lambda_resnet26t", "edgenext_xx_small", "mobilevit_xxs", "mobilevitv2_050", "efficientformer_l1", "poolformer_s12",
    "fastvit_t8", "levit_128s", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "visformer_tiny", "coat_lite_tiny",
)  # fmt: skip
"""Sixty networks of timm, one of a family."""

TIMM_MORE = (
    "deit_tiny_patch16_224", "xcit_nano_12_p16_224", "mixer_s32_224", "gmixer_12_224", "resmlp_12_224",
    "maxvit_rmlp_pico_rw_256", "coatnet_pico_rw_224", "efficientvit_b0", "efficientvit_m0", "tiny_vit_5m_224", "halonet26t",
    "botnet26t_256", "resnetv2_50", "resnetblur18", "resnet50", "seresnet50", "densenetblur121d", "dla34", "regnetz_b16",
    "tf_mixnet_s", "tf_efficientnet_lite0", "ghostnetv2_100", "ghostnetv3_050", "mobilenetv4_hybrid_medium", "nf_regnet_b0",
    "dm_nfnet_f0", "inception_resnet_v2", "legacy_xception", "cspresnet50", "hgnetv2_b0", "vgg11_bn", "focalnet_tiny_srf",
    "convformer_s18", "caformer_s18", "pit_ti_224", "pvt_v2_b0", "rdnet_tiny", "mambaout_femto", "shvit_s1",
    "swiftformer_xs", "nextvit_small", "davit_tiny", "gcresnext26ts", "bat_resnext26ts", "fasternet_t0",
)  # fmt: skip
"""Further networks of timm, for ``--all``."""

OTHERS = ("yolov8n-cls", "yolo11n-cls", "osnet_x0_25")
"""As ``ultralytics`` and ``torchreid`` build them, where these packages are installed."""


def main_names() -> list[str]:
    """The networks of the table: ``torchvision:NAME``, ``timm:NAME`` and the others."""
    torchvision = [f"torchvision:{name}" for name in TORCHVISION]
    return [*torchvision, *(f"timm:{name}" for name in TIMM), *(f"other:{name}" for name in OTHERS)]


def all_names() -> list[str]:
    """These, then every other builder of torchvision and more of timm."""
    from torchvision import models

    found = main_names()
    builders = [f"torchvision:{name}" for name in models.list_models(module=models)]
    return [*found, *(name for name in builders if name not in found), *(f"timm:{name}" for name in TIMM_MORE)]


def smallest(name: str, seed: int) -> int:
    """The first of ``SIZES`` at which the network can be built and run.

    Raises:
        LookupError: it runs at none of them.
    """
    reasons = []
    for size in SIZES:
        try:
            build(name, size, seed)
        except ImportError:
            raise
        except Exception as error:  # each package refuses a size in its own way
            reasons.append(f"{size}: {type(error).__name__}: {error}")
            continue
        return size
    raise LookupError(f"{name} runs at none of {SIZES}. At {reasons[0]}")


def build(name: str, size: int, seed: int) -> nn.Module:
    """The network in evaluation mode, with seeded weights and with norms as after a training."""
    torch.manual_seed(seed)
    source, _, name = name.partition(":")
    module = _BUILDERS[source](name, size)
    return settle(module, torch.randn(BATCH, 3, size, size))


def _torchvision(name: str, size: int) -> nn.Module:
    from torchvision import models

    named = inspect.signature(models.get_model_builder(name)).parameters
    options: dict[str, Any] = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    if name.startswith("vit"):
        options["image_size"] = size
    elif name.startswith("maxvit"):
        options["input_size"] = (size, size)
    assert "weights" in named
    return models.get_model(name, weights=None, num_classes=CLASSES, **options)


def _timm(name: str, size: int) -> nn.Module:
    import timm

    options: dict[str, Any] = {"pretrained": False, "num_classes": CLASSES}
    if size != timm.get_pretrained_cfg(name).input_size[-1]:
        try:
            return timm.create_model(name, img_size=size, **options)
        except TypeError:  # most convolutional networks have no such option
            pass
    return timm.create_model(name, **options)


def _other(name: str, size: int) -> nn.Module:
    if name.startswith("yolo"):
        from ultralytics.nn.tasks import ClassificationModel

        return ClassificationModel(f"{name}.yaml", nc=CLASSES, verbose=False)
    from torchreid.reid.models import build_model

    return build_model(name, CLASSES, pretrained=False)


_BUILDERS: dict[str, Callable[[str, int], nn.Module]] = {
    "torchvision": _torchvision, "timm": _timm, "other": _other
}  # fmt: skip


def settle(module: nn.Module, images: Tensor) -> nn.Module:
    """Give a fresh network what a training leaves: scales and shifts that differ from channel to channel, and running
    statistics that fit. Otherwise a branch whose last norm starts at zero passes nothing on, and nothing lost would be seen."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1 or not parameter.is_floating_point():
                continue
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
            elif bool((parameter == 1).all()) or float(parameter.abs().max()) < 1e-3:
                parameter.uniform_(0.7, 1.3)
        norms = {
            child: child.momentum for child in module.modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)
        }
        module.eval()
        for norm in norms:
            norm.train()
            norm.momentum = 1.0  # the statistics of this batch alone
        module(images)
        for norm, momentum in norms.items():
            norm.momentum = momentum
        module.eval()(images)
    return module
