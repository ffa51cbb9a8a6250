"""torchvision's families: random weights that matter, small images, and layers of every kind.

`PLANS` says, for every layer, which plan the engine is to choose and how its reason begins.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision import models
from torchvision.models import swin_transformer, vision_transformer

LABELS = 10
_SEED = 20


@dataclass(frozen=True)
class Family:
    """A model family.

    Parameters
    ----------
    build : the model, with whatever weights it starts from.
    side : height and width of the images.
    """

    build: Callable[[], nn.Module]
    side: int = 32


@dataclass(frozen=True)
class Row:
    """A layer and the plan it is to get.

    Parameters
    ----------
    axis : the unit axis of its output.
    plan : name of the plan.
    reason : how its reason begins; "" for additive plans.
    """

    axis: int
    plan: str
    reason: str = ""


def _vgg() -> nn.Module:
    """vgg11_bn with hidden layers of 48 instead of 4096, which would be 120 million weights."""
    with torch.device("meta"):
        net = models.vgg11_bn(num_classes=LABELS, init_weights=False)
    net.classifier[0] = nn.Linear(512 * 7 * 7, 48)
    net.classifier[3] = nn.Linear(48, 48)
    net.classifier[6] = nn.Linear(48, LABELS)
    return net.to_empty(device="cpu")


def _vit() -> nn.Module:
    return vision_transformer.VisionTransformer(
        image_size=16,
        patch_size=4,
        num_layers=3,
        num_heads=2,
        hidden_dim=24,
        mlp_dim=40,
        num_classes=LABELS,
    )


def _swin() -> nn.Module:
    """Two stages; windows are shifted in the first one and meet the border in the second."""
    return swin_transformer.SwinTransformer(
        patch_size=[4, 4],
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=[4, 4],
        num_classes=LABELS,
    )


def _densenet() -> nn.Module:
    return models.DenseNet(
        growth_rate=8,
        block_config=(2, 2, 2, 2),
        num_init_features=16,
        bn_size=2,
        num_classes=LABELS,
    )


def _named(name: str, **options: bool) -> Callable[[], nn.Module]:
    return partial(models.get_model, name, weights=None, num_classes=LABELS, **options)


_NO_AUXILIARY = {"aux_logits": False, "transform_input": False, "init_weights": False}

FAMILIES = {
    "vgg11_bn": Family(_vgg),
    "resnet18": Family(_named("resnet18")),
    "densenet": Family(_densenet),
    "mobilenet_v3_small": Family(_named("mobilenet_v3_small")),
    "efficientnet_b0": Family(_named("efficientnet_b0")),
    "convnext_tiny": Family(_named("convnext_tiny")),
    "inception_v3": Family(_named("inception_v3", **_NO_AUXILIARY), side=75),
    "googlenet": Family(_named("googlenet", **_NO_AUXILIARY)),
    "shufflenet_v2_x0_5": Family(_named("shufflenet_v2_x0_5")),
    "squeezenet1_0": Family(_named("squeezenet1_0")),
    "mnasnet0_5": Family(_named("mnasnet0_5")),
    "regnet_y_400mf": Family(_named("regnet_y_400mf")),
    "vit": Family(_vit, side=16),
    "swin": Family(_swin),
}

_GROUPS = "units meet in a convolution of several groups"
_ADD = "units meet in an op that is not linear (add)"
_NORM = "units meet in an op that is not linear (layer_norm)"
_ATTENTION = "units meet in an op that is not linear (transpose)"

PLANS: dict[str, dict[str, Row]] = {
    "vgg11_bn": {
        "features.2": Row(1, "additive"),
        "features.13": Row(1, "additive"),
        "features.27": Row(1, "additive"),
        "classifier.1": Row(1, "additive"),
        "classifier.4": Row(1, "additive"),
    },
    "resnet18": {
        "relu": Row(1, "additive"),
        "layer1.0.relu": Row(1, "additive"),
        "layer2.0.downsample.1": Row(1, "additive"),
        "layer3.0.bn1": Row(1, "additive"),
        "layer4.1.conv1": Row(1, "additive"),
        "layer4.1.bn2": Row(1, "additive"),
        "layer4.1.relu": Row(1, "additive"),
        "avgpool": Row(1, "additive"),
    },
    "densenet": {
        "features.relu0": Row(1, "additive"),
        "features.denseblock1.denselayer2.conv2": Row(1, "additive"),
        "features.denseblock2.denselayer1.relu2": Row(1, "additive"),
        "features.transition2.relu": Row(1, "additive"),
        "features.norm5": Row(1, "additive"),
    },
    "mobilenet_v3_small": {
        "features.0.2": Row(1, "additive"),
        "features.1.block.0.2": Row(1, "additive"),
        "features.2.block.0.2": Row(1, "additive"),
        "features.2.block.1.0": Row(1, "additive"),
        "features.4.block.1.2": Row(1, "additive"),
        "features.4.block.2.activation": Row(1, "additive"),
        "features.4.block.2.scale_activation": Row(1, "additive"),
        "features.4.block.2": Row(1, "additive"),
        "features.12.2": Row(1, "additive"),
        "classifier.1": Row(1, "additive"),
    },
    "efficientnet_b0": {
        "features.0.2": Row(1, "additive"),
        "features.3.0.block.0.2": Row(1, "additive"),
        "features.4.1.block.2.activation": Row(1, "additive"),
        "features.5.1.block.1.0": Row(1, "additive"),
        "features.6.0.block.2": Row(1, "additive"),
        "features.8.2": Row(1, "additive"),
    },
    "convnext_tiny": {
        "features.0.0": Row(1, "suffix", _NORM),
        "features.0.1": Row(1, "suffix", _ADD),
        "features.1.0.block.0": Row(1, "suffix", _NORM),
        "features.1.2.block.4": Row(3, "additive"),
        "features.3.1.block.4": Row(3, "additive"),
        "features.5.4.block.2": Row(3, "additive"),
        "features.7.2.block.4": Row(3, "additive"),
        "avgpool": Row(1, "additive"),
        "classifier.0": Row(1, "additive"),
    },
    "inception_v3": {
        "Mixed_5c.branch5x5_1": Row(1, "additive"),
        "Mixed_6b.branch_pool": Row(1, "additive"),
        "Mixed_7c.branch1x1": Row(1, "additive"),
        "Mixed_7c": Row(1, "additive"),
        "avgpool": Row(1, "additive"),
    },
    "googlenet": {
        "conv1": Row(1, "additive"),
        "inception4a.branch2.0": Row(1, "additive"),
        "inception5a": Row(1, "additive"),
        "inception5b.branch4.1": Row(1, "additive"),
        "inception5b": Row(1, "additive"),
        "dropout": Row(1, "additive"),
    },
    "shufflenet_v2_x0_5": {
        "conv1.2": Row(1, "additive"),
        "stage3.1.branch2.2": Row(1, "additive"),
        "stage3.1.branch2.3": Row(1, "additive"),
        "stage4.3.branch2.7": Row(1, "additive"),
        "stage4.3": Row(1, "additive"),
        "conv5.2": Row(1, "additive"),
    },
    "squeezenet1_0": {
        "features.1": Row(1, "additive"),
        "features.3.squeeze_activation": Row(1, "additive"),
        "features.7.expand3x3_activation": Row(1, "additive"),
        "features.12.expand1x1_activation": Row(1, "additive"),
        "features.12": Row(1, "additive"),
    },
    "mnasnet0_5": {
        "layers.2": Row(1, "additive"),
        "layers.8.1.layers.2": Row(1, "additive"),
        "layers.10.1.layers.3": Row(1, "additive"),
        "layers.11.1": Row(1, "additive"),
        "layers.16": Row(1, "additive"),
    },
    "regnet_y_400mf": {
        "stem.2": Row(1, "additive"),
        "trunk_output.block2.block2-1.f.a.2": Row(1, "suffix", _GROUPS),
        "trunk_output.block3.block3-2.f.b.2": Row(1, "additive"),
        "trunk_output.block3.block3-2.f.se.activation": Row(1, "additive"),
        "trunk_output.block3.block3-2.f.se": Row(1, "additive"),
        "trunk_output.block4.block4-5.f.c.1": Row(1, "additive"),
        "trunk_output.block4.block4-5.activation": Row(1, "additive"),
    },
    "vit": {
        "conv_proj": Row(1, "suffix", _NORM),
        "encoder.layers.encoder_layer_0.mlp.1": Row(2, "additive"),
        "encoder.layers.encoder_layer_1.ln_1": Row(2, "suffix", _ATTENTION),
        "encoder.layers.encoder_layer_1.mlp.1": Row(2, "additive"),
        "encoder.layers.encoder_layer_2.mlp.1": Row(2, "additive"),
        "encoder.layers.encoder_layer_2": Row(2, "additive"),
        "encoder.ln": Row(2, "additive"),
    },
    "swin": {
        "features.0": Row(3, "suffix", _NORM),
        "features.1.0.mlp.1": Row(3, "additive"),
        "features.1.1.attn": Row(3, "suffix", _NORM),
        "features.2.norm": Row(3, "additive"),
        "features.3.0.mlp.1": Row(3, "additive"),
        "features.3.1.mlp.1": Row(3, "additive"),
        "norm": Row(3, "additive"),
        "flatten": Row(1, "additive"),
    },
}


def images(name: str, count: int, seed: int = 0) -> Tensor:
    """Random images (samples, 3, side, side) for a family."""
    side = FAMILIES[name].side
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def network(name: str) -> nn.Module:
    """A family's model in evaluation mode, with weights under which its layers matter."""
    with torch.random.fork_rng([]):
        torch.manual_seed(_SEED)
        net = FAMILIES[name].build().requires_grad_(False).eval()
        draw(net)
    take_statistics(net, images(name, 32, seed=1))
    return net


def draw(net: nn.Module) -> None:
    """Draw all weights again so that every branch of a model counts."""
    for path, weight in net.named_parameters():
        _draw(path, weight)


def _draw(path: str, weight: Tensor) -> None:
    """Signals of size 1 in every branch: fresh layer scales are 1e-6, fresh classifiers .01."""
    if path.endswith("layer_scale"):
        weight.fill_(1.0)
    elif path.endswith("weight") and weight.ndim > 1:
        weight.normal_(std=(2 / weight[0].numel()) ** 0.5)
    elif path.endswith("weight"):
        weight.uniform_(0.5, 1.5)
    else:
        weight.normal_(std=0.3)


def take_statistics(net: nn.Module, batch: Tensor) -> None:
    """Give every batch norm the mean and variance of a batch."""
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None  # the mean over all batches, here one
    net(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        # A channel that happens to be zero in this batch must not blow up later.
        norm.running_var.clamp_(min=0.1 * float(norm.running_var.mean()))
        norm.eval().momentum = momentum
