"""What 86 families of other libraries get as the recommended layer: a table that was looked over.

Random weights, small pictures, tiny configurations: only the way through the network matters.
"""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from unitroles.model.borrow import untouched
from unitroles.model.candidates import resolve
from unitroles.model.output import Asked, classes_of, logits_alone
from unitroles.model.trace import trace

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

# Layer, call and units.
EXPECTED = {
    "torchvision alexnet": ("features.11", 0, 256),
    "torchvision vgg11": ("features.19", 0, 512),
    "torchvision resnet18": ("layer4.1.relu", 1, 512),
    "torchvision resnext50_32x4d": ("layer4.2.relu", 2, 2048),
    "torchvision densenet121": ("features.norm5", 0, 1024),
    "torchvision squeezenet1_0": ("features.12", 0, 512),
    "torchvision inception_v3": ("Mixed_7c", 0, 2048),
    "torchvision googlenet": ("inception5b", 0, 1024),
    "torchvision shufflenet_v2_x0_5": ("conv5.2", 0, 1024),
    "torchvision mobilenet_v2": ("features.18.2", 0, 1280),
    "torchvision mobilenet_v3_small": ("features.12.2", 0, 576),
    "torchvision mnasnet0_5": ("layers.16", 0, 1280),
    "torchvision efficientnet_b0": ("features.8.2", 0, 1280),
    "torchvision regnet_y_400mf": ("trunk_output.block4.block4-5.activation", 0, 440),
    "torchvision convnext_tiny": ("classifier.0", 0, 768),
    "torchvision swin_t": ("norm", 0, 768),
    "torchvision r3d_18": ("layer4.1.relu", 0, 512),
    "timm resnetv2_50": ("norm.act", 0, 2048),
    "timm eca_nfnet_l0": ("final_act", 0, 2304),
    "timm nf_regnet_b0": ("final_act", 0, 960),
    "timm regnetz_c16_evos": ("final_conv.bn", 0, 1536),
    "timm efficientnet_lite0": ("bn2.act", 0, 1280),
    "timm convnext_atto": ("head.norm", 0, 320),
    "timm mambaout_femto": ("stages.3.blocks.2", 0, 288),
    "timm vit_tiny_patch16_224": ("norm", 0, 192),
    "timm deit_tiny_distilled_patch16_224": ("norm", 0, 192),
    "timm mixer_s32_224": ("norm", 0, 512),
    "timm resmlp_12_224": ("norm", 0, 384),
    "timm poolformer_s12": ("head.norm", 0, 512),
    "timm densenet121": ("features.norm5.act", 0, 1024),
    "timm rdnet_tiny": ("head.norm", 0, 1040),
    "timm inception_next_atto": ("stages.3.blocks.1", 0, 320),
    "timm ghostnet_100": ("act2", 0, 1280),
    "timm mobilenetv4_conv_small": ("norm_head.act", 0, 1280),
    "timm levit_128s": ("stages.2.blocks.3", 0, 384),
    "timm mobilevit_xxs": ("final_conv.bn.act", 0, 320),
    "timm coat_lite_tiny": ("norm4", 0, 320),
    "timm pit_ti_224": ("norm", 0, 256),
    "timm edgenext_xx_small": ("head.norm", 0, 168),
    "timm fastvit_t8": ("final_conv.act", 0, 768),
    "timm efficientformer_l1": ("norm", 0, 448),
    "timm repvgg_a0": ("stages.3.0.act", 0, 1280),
    "timm dla34": ("level5.root.relu", 0, 512),
    "timm dpn48b": ("features.conv5_bn_ac.bn.act", 0, 832),
    "timm vovnet39a": ("stages.3.blocks.1.conv_concat.bn.act", 0, 1024),
    "timm cspresnet50": ("stages.3.conv_transition.bn.act", 0, 1024),
    "timm resnest14d": ("layer4.0.act3", 0, 2048),
    "timm selecsls42": ("head.3.2", 0, 1280),
    "timm pvt_v2_b0": ("stages.3.norm", 0, 256),
    "timm starnet_s1": ("norm", 0, 192),
    "timm hgnet_tiny": ("head.last_conv.1", 0, 2048),
    "timm convmixer_768_32": ("blocks.31.3", 0, 768),
    "timm focalnet_tiny_srf": ("norm", 0, 768),
    "timm visformer_tiny": ("norm", 0, 384),
    "transformers Albert": ("albert.pooler_activation", 0, 32),
    "transformers Bart": ("classification_head.dropout", 1, 32),
    "transformers Bert": ("bert.pooler.activation", 0, 32),
    "transformers Bloom": ("transformer.ln_f", 0, 32),
    "transformers DebertaV2": ("pooler", 0, 32),
    "transformers DistilBert": ("dropout", 0, 32),
    "transformers Electra": ("classifier.activation", 0, 32),
    "transformers GPT2": ("transformer.ln_f", 0, 32),
    "transformers Gemma": ("model.norm", 0, 32),
    "transformers Llama": ("model.norm", 0, 32),
    "transformers MPNet": ("classifier.dropout", 1, 32),
    "transformers Mistral": ("model.norm", 0, 32),
    "transformers OPT": ("model.decoder.final_layer_norm", 0, 32),
    "transformers OpenAIGPT": ("transformer.h.1.ln_2", 0, 32),
    "transformers Phi": ("model.final_layernorm", 0, 32),
    "transformers Qwen2": ("model.norm", 0, 32),
    "transformers Roberta": ("classifier.dropout", 1, 32),
    "transformers T5": ("classification_head.dropout", 1, 32),
    "transformers XLNet": ("sequence_summary.activation", 0, 32),
    "transformers Beit": ("beit.pooler.layernorm", 0, 32),
    "transformers CLIP": ("vision_model.encoder.layers.1", 0, 32),
    "transformers ConvNext": ("convnext.encoder.stages.3.layers.0", 0, 40),
    "transformers ConvNextV2": ("convnextv2.encoder.stages.3.layers.0", 0, 40),
    "transformers DeiT": ("deit.layernorm", 0, 32),
    "transformers Dinov2": ("dinov2.layernorm", 0, 32),
    "transformers PoolFormer": ("norm", 0, 40),
    "transformers RegNet": ("regnet.encoder.stages.3.layers.0.activation", 0, 40),
    "transformers ResNet": ("resnet.encoder.stages.3.layers.0.activation", 0, 40),
    "transformers Segformer": ("segformer.stages.3.layer_norm", 0, 40),
    "transformers Siglip": ("vision_model.post_layernorm", 0, 32),
    "transformers Swin": ("swin.layernorm", 0, 32),
    "transformers ViT": ("vit.layernorm", 0, 32),
}


def _torchvision(name: str) -> tuple[nn.Module, Any]:
    models = pytest.importorskip("torchvision").models
    started = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
    shape = {"inception_v3": (3, 96, 96), "r3d_18": (3, 4, 32, 32)}.get(name, (3, 64, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # auxiliary classifiers
        model = models.get_model(name, weights=None, num_classes=10, **started)
    return model, torch.randn(2, *shape)


def _timm(name: str) -> tuple[nn.Module, Any]:
    model = pytest.importorskip("timm").create_model(name, pretrained=False, num_classes=10)
    fixed = model.pretrained_cfg.get("fixed_input_size")
    side = model.pretrained_cfg["input_size"][-1] if fixed else 64
    return model, torch.randn(2, 3, side, side)


_TEXTS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
_BART = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
_BART |= {"d_model": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
_TOKENS = {
    "Albert": {**_TEXTS, "embedding_size": 16},
    "Bart": _BART | {"bos_token_id": 0, "max_position_embeddings": 40},
    "Bert": _TEXTS,
    "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "DebertaV2": _TEXTS,
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "Electra": {**_TEXTS, "embedding_size": 16},
    "GPT2": _GPT | {"bos_token_id": 0},
    "Gemma": {**_TEXTS, "num_key_value_heads": 2, "head_dim": 8},
    "Llama": _TEXTS,
    "MPNet": _TEXTS,
    "Mistral": {**_TEXTS, "num_key_value_heads": 2},
    "OPT": {**_TEXTS, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "OpenAIGPT": _GPT,
    "Phi": _TEXTS,
    "Qwen2": {**_TEXTS, "num_key_value_heads": 2},
    "Roberta": _TEXTS,
    "T5": {"d_model": 32, "d_kv": 8, "num_layers": 1, "num_heads": 4, "d_ff": 48}
    | {"decoder_start_token_id": 0},
    "XLNet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
}
_PATCHES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 64,
    "patch_size": 16,
}
_STAGES = {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1]}
_PICTURES = {
    "Beit": _PATCHES,
    "CLIP": {"vision_config": _PATCHES},
    "ConvNext": _STAGES,
    "ConvNextV2": _STAGES,
    "DeiT": _PATCHES,
    "Dinov2": _PATCHES,
    "PoolFormer": _STAGES,
    "RegNet": {**_STAGES, "embedding_size": 16, "groups_width": 8},
    "ResNet": {**_STAGES, "embedding_size": 16},
    "Segformer": {**_STAGES, "num_attention_heads": [1, 2, 2, 2]},
    "Siglip": {"vision_config": _PATCHES},
    "Swin": {"image_size": 64, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4]},
    "ViT": _PATCHES,
}


def _transformers(name: str) -> tuple[nn.Module, Any]:
    library = pytest.importorskip("transformers")
    task = "SequenceClassification" if name in _TOKENS else "ImageClassification"
    options = {"num_labels": 3, **_TOKENS.get(name, {}), **_PICTURES.get(name, {})}
    if name not in _TOKENS:
        pictures = {"pixel_values": torch.randn(2, 3, 64, 64)}
        config = getattr(library, f"{name}Config")(**options)
        return getattr(library, f"{name}For{task}")(config), pictures
    config = getattr(library, f"{name}Config")(
        **options, vocab_size=60, pad_token_id=1, eos_token_id=2
    )
    tokens = torch.randint(5, 60, (2, 12))
    tokens[:, -1] = 2
    given = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return getattr(library, f"{name}For{task}")(config), given


_BUILD: dict[str, Callable[[str], tuple[nn.Module, Any]]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
}


def recommended(family: str) -> tuple[str, int, int]:
    library, _, name = family.partition(" ")
    torch.manual_seed(0)
    model, example = _BUILD[library](name)
    asked = Asked(None, classes_of(model), strict=False)
    with untouched(model), logits_alone(model, example, asked):
        site = resolve(model, None, trace(model, example))
    return site.path, site.call, site.units


@pytest.mark.parametrize("family", EXPECTED)
def test_the_recommended_layer_of_a_family(family):
    assert recommended(family) == EXPECTED[family]
