"""The five networks of the table: random weights, random images, one layer each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn

Split = tuple[Tensor, Tensor]
_LOGIT_STD = 3.0


class Data(NamedTuple):
    """Images and labels of both splits."""

    train: Split
    test: Split


class Parts(NamedTuple):
    """A model cut by hand: `head(*body(x))` are its logits, the units come first."""

    body: Callable[[Tensor], tuple[Tensor, ...]]
    head: Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Parameters
    ----------
    make : the network for images of `side` pixels.
    parts : the network cut at `layer`, for the loops of other people.
    limit : the goal for the growing part, in evaluation passes, or times what must run N+1 times.
    products : the linear layers that must run for every mask, for g.
    deep : everything after the layer must run for every mask.
    axis : of the units in the layer's output.
    heavy : three repetitions must do.
    hook_masks : masks that the hook loop is timed on.
    batch : samples a forward.
    """

    key: str
    title: str
    layer: str
    make: Callable[[int], nn.Module]
    parts: Callable[[nn.Module], Parts]
    side: int
    logits: int
    samples: int
    classes: int
    limit: float
    products: Callable[[Any], list[nn.Linear]] = lambda model: []
    deep: bool = False
    axis: int = 1
    heavy: bool = False
    hook_masks: int = 8
    batch: int = 32

    def small(self) -> Case:
        """The same case in seconds."""
        return replace(self, side=min(self.side, 64), samples=16, classes=4)

    def model(self) -> nn.Module:
        """Random weights; normalisation and logits in the range of a trained network."""
        torch.manual_seed(0)
        model = self.make(self.side).eval()
        settle(model, torch.randn(32, 3, self.side, self.side))
        return model

    def data(self) -> Data:
        """Random images; every class in both splits, as equally often as it goes."""
        draw = torch.Generator().manual_seed(1)
        classes = torch.randperm(self.logits, generator=draw)[: self.classes]
        train, test = (self._split(classes, draw) for _ in range(2))
        return Data(train, test)

    def _split(self, classes: Tensor, draw: torch.Generator) -> Split:
        count = self.samples // 2
        images = torch.randn(count, 3, self.side, self.side, generator=draw)
        places = torch.randperm(count, generator=draw) % len(classes)
        return images, classes[places]


@torch.inference_mode()
def settle(model: nn.Module, images: Tensor) -> None:
    """Take batch-norm statistics from a batch and scale the last layer to logits of a fixed std."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # the plain average
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    last.weight.normal_(std=0.02)  # torchvision's ViT starts with zeros
    last.bias.zero_()
    model(images)
    for norm in norms:
        norm.eval()
        norm.momentum = 0.1
    last.weight.mul_(_LOGIT_STD / model(images).std())


def _resnet(logits: int) -> Callable[[int], nn.Module]:
    return lambda side: torchvision.models.resnet18(num_classes=logits)


def _resnet_parts(stages: int) -> Callable[[Any], Parts]:
    def parts(model: Any) -> Parts:
        blocks = [model.layer1, model.layer2, model.layer3, model.layer4]
        stem = [model.conv1, model.bn1, model.relu, model.maxpool]
        body = nn.Sequential(*stem, *blocks[:stages])
        head = nn.Sequential(*blocks[stages:], model.avgpool, nn.Flatten(), model.fc)
        return Parts(lambda x: (body(x),), head)

    return parts


def _vit(side: int) -> nn.Module:
    return torchvision.models.VisionTransformer(side, 16, 12, 12, 768, 3072)


def _vit_parts(model: Any) -> Parts:
    """Cut after the activation function of the last block's MLP; the residual flows around it."""
    encoder = model.encoder
    *blocks, last = encoder.layers

    def body(images: Tensor) -> tuple[Tensor, ...]:
        patches = model._process_input(images)
        tokens = torch.cat([model.class_token.expand(len(images), -1, -1), patches], dim=1)
        x = tokens + encoder.pos_embedding
        for block in blocks:
            x = block(x)
        normed = last.ln_1(x)
        x = x + last.self_attention(normed, normed, normed, need_weights=False)[0]
        return last.mlp[1](last.mlp[0](last.ln_2(x))), x

    def head(hidden: Tensor, residual: Tensor) -> Tensor:
        return model.heads(encoder.ln(residual + last.mlp[3](hidden))[:, 0])

    return Parts(body, head)


def _vgg_parts(model: Any) -> Parts:
    head = nn.Sequential(model.features[30:], model.avgpool, nn.Flatten(), model.classifier)
    body = model.features[:30]
    return Parts(lambda x: (body(x),), head)


def _vgg_bn(side: int) -> nn.Module:
    features = torchvision.models.vgg16_bn().features
    head = [nn.Linear(512 * (side // 32) ** 2, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU()]
    return nn.Sequential(features, nn.Flatten(), *head, nn.Linear(512, 10))


def _vgg_bn_parts(model: Any) -> Parts:
    body, head = model[0][:43], nn.Sequential(model[0][43:], *model[1:])
    return Parts(lambda x: (body(x),), head)


CASES = (
    Case(
        key="resnet18-224",
        title="ResNet-18 @224, `layer4`",
        layer="layer4",
        make=_resnet(1000),
        parts=_resnet_parts(4),
        side=224,
        logits=1000,
        samples=128,
        classes=64,
        limit=1.08,
    ),
    Case(
        key="vit-224",
        title="ViT-B/16 @224, hidden units of the last MLP",
        layer="encoder.layers.encoder_layer_11.mlp.1",
        make=_vit,
        parts=_vit_parts,
        side=224,
        logits=1000,
        samples=128,
        classes=64,
        limit=1.15,
        axis=2,
        heavy=True,
        hook_masks=2,
    ),
    Case(
        key="vgg16bn-32",
        title="VGG16-BN @32, last conv, head 512–512–512–10",
        layer="0.42",
        make=_vgg_bn,
        parts=_vgg_bn_parts,
        side=32,
        logits=10,
        samples=2048,
        classes=10,
        limit=1.15,
        products=lambda model: [model[4], model[6]],
    ),
    Case(
        key="vgg16-224",
        title="VGG16 @224, `features.29`, head 4096–4096–1000",
        layer="features.29",
        make=lambda side: torchvision.models.vgg16(),
        parts=_vgg_parts,
        side=224,
        logits=1000,
        samples=128,
        classes=64,
        limit=1.15,
        products=lambda model: [model.classifier[3], model.classifier[6]],
        heavy=True,
        hook_masks=2,
    ),
    Case(
        key="resnet18-32",
        title="ResNet-18 @32, `layer1`",
        layer="layer1",
        make=_resnet(10),
        parts=_resnet_parts(1),
        side=32,
        logits=10,
        samples=2048,
        classes=10,
        limit=1.15,
        deep=True,
        heavy=True,
    ),
)
