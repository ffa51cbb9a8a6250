"""The smallest member of every family in docs/models.md, with random weights that matter."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

LABELS = 11
"""Outputs of every model; as no other layer has so many, they tell which the classifiers are."""

_LOGIT_STD = 3.0
_SCALES = ("weight", "gamma", "gain", "scale", "alpha", "ls")


@dataclass(frozen=True)
class Member:
    """A family and its smallest member.

    Parameters
    ----------
    family, name : in the words of `library`, "torchvision" or "timm".
    side : of the images; the smallest usual size that the family takes.
    axes : where the units of the early and of the recommended layer are, told by hand.
    options : of the factory.
    first : the early layer, where no activation function is a module.
    """

    library: str
    family: str
    name: str
    side: int = 64
    axes: tuple[int, int] = (1, 1)
    options: Mapping[str, object] = field(default_factory=dict)
    first: str = ""

    def images(self, count: int, seed: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed)
        return torch.randn(count, 3, self.side, self.side, generator=draw)

    def model(self) -> nn.Module:
        """In evaluation mode, every layer and both branches of every residual of size 1."""
        torch.manual_seed(0)
        model = self._build().requires_grad_(False).eval()
        for path, weight in model.named_parameters():
            _draw(path.rpartition(".")[2], weight)
        _settle(model, self.images(32, seed=1))
        return model

    def _build(self) -> nn.Module:
        if self.library == "timm":
            import timm

            return timm.create_model(self.name, num_classes=LABELS, **self.options)
        from torchvision.models import get_model

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of an initialisation soon overwritten
            return get_model(self.name, weights=None, num_classes=LABELS, **self.options)


def _draw(name: str, weight: Tensor) -> None:
    """Matrices that keep the size of a signal; scales around 1, where fresh ones may be 1e-6."""
    wide = max(weight.shape[1:], default=1) > 1
    if name.endswith("weight") and wide:
        weight.normal_(std=(2 / weight[0].numel()) ** 0.5)
    elif name.startswith(_SCALES) or name.endswith(_SCALES):
        weight.uniform_(0.5, 1.5)
    else:
        weight.normal_(std=0.3)


def _settle(model: nn.Module, images: Tensor) -> None:
    """Take batch-norm statistics from a batch and scale the classifiers to logits of one std."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # the plain average
    model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        # A channel that happens to be zero in this batch must not blow up later.
        norm.running_var.clamp_(min=0.1 * float(norm.running_var.mean()))
        norm.eval()
        norm.momentum = momentum
    factor = _LOGIT_STD / model(images).std()
    for module in model.modules():
        if LABELS in (getattr(module, "out_features", 0), getattr(module, "out_channels", 0)):
            for weight in module.parameters(recurse=False):
                weight.mul_(factor)


_TOKENS = (2, 2)
_SMALL = {"img_size": 64}
_PLAIN = {"init_weights": False}  # which takes minutes, and is overwritten

MEMBERS = (
    Member("torchvision", "alexnet", "alexnet"),
    Member("torchvision", "vgg", "vgg11", side=32),
    Member("torchvision", "vgg_bn", "vgg11_bn", side=32),
    Member("torchvision", "resnet", "resnet18"),
    Member("torchvision", "resnext", "resnext50_32x4d"),
    Member("torchvision", "wide_resnet", "wide_resnet50_2"),
    Member("torchvision", "squeezenet", "squeezenet1_1"),
    Member("torchvision", "densenet", "densenet121"),
    Member("torchvision", "inception_v3", "inception_v3", 75, (1, 1), _PLAIN, "Conv2d_1a_3x3"),
    Member("torchvision", "googlenet", "googlenet", 64, (1, 1), _PLAIN, "conv1"),
    Member("torchvision", "shufflenet_v2", "shufflenet_v2_x0_5"),
    Member("torchvision", "mobilenet_v2", "mobilenet_v2"),
    Member("torchvision", "mobilenet_v3", "mobilenet_v3_small"),
    Member("torchvision", "mnasnet", "mnasnet0_5"),
    Member("torchvision", "efficientnet", "efficientnet_b0"),
    Member("torchvision", "efficientnet_v2", "efficientnet_v2_s"),
    Member("torchvision", "regnet_x", "regnet_x_400mf"),
    Member("torchvision", "regnet_y", "regnet_y_400mf"),
    Member("torchvision", "convnext", "convnext_tiny", axes=(3, 3)),
    Member("torchvision", "vit", "vit_b_16", axes=_TOKENS, options={"image_size": 64}),
    Member("torchvision", "swin", "swin_t", axes=(3, 3)),
    Member("torchvision", "swin_v2", "swin_v2_t", axes=(3, 3)),
    Member("torchvision", "maxvit", "maxvit_t", side=224, axes=(1, 3)),
    Member("timm", "resnet", "resnet10t"),
    Member("timm", "regnet", "regnetx_002"),
    Member("timm", "vision_transformer", "deit_tiny_patch16_224", 64, _TOKENS, _SMALL),
    Member("timm", "deit", "deit_tiny_distilled_patch16_224", 64, _TOKENS, _SMALL),
    Member("timm", "eva", "eva02_tiny_patch14_224", 56, _TOKENS, {"img_size": 56}),
    Member("timm", "mlp_mixer", "mixer_s32_224", 64, _TOKENS, _SMALL),
    Member("timm", "mlp_mixer (resmlp)", "resmlp_12_224", 64, _TOKENS, _SMALL),
    Member("timm", "convnext", "convnextv2_atto"),
    Member("timm", "metaformer", "poolformer_s12"),
    Member("timm", "efficientformer", "efficientformer_l1", side=224, axes=(1, 2)),
    Member("timm", "mobilevit", "mobilevit_xxs"),
    Member("timm", "levit", "levit_128s", 64, (1, 2), _SMALL),
    Member("timm", "nfnet", "nf_regnet_b0"),
    Member("timm", "maxxvit (coatnet)", "coatnet_pico_rw_224", 64, options=_SMALL),
    Member("timm", "hrnet", "hrnet_w18_small"),
    Member("timm", "ghostnet", "ghostnet_050"),
    Member("timm", "efficientnet", "mobilenetv4_conv_small"),
    Member("timm", "xcit", "xcit_nano_12_p16_224", 64, (1, 2), _SMALL),
    Member("timm", "pvt_v2", "pvt_v2_b0", axes=_TOKENS),
    Member("timm", "cspnet", "cs3darknet_s"),
)
