"""Tiny models of transformers in folders, made from their configurations: nothing is downloaded."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = ["who", "where", "is", "the", "cat", "dog", "river", "city", "##s", "?", "a", "king"]
MOST = 24
SIDE = 16


def save_tokenizer(folder: Path, padding: bool = True, most: int = MOST) -> None:
    """A WordPiece tokenizer of a few words."""
    import tokenizers
    import transformers

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]"} if padding else {}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=most,
        **special,
    ).save_pretrained(folder)


def text_model(labels: list[str] | None = None, head: bool = True, **changes: Any) -> nn.Module:
    """Two layers of BERT."""
    import transformers

    names = {} if labels is None else {"label2id": {label: i for i, label in enumerate(labels)}}
    if labels is not None:
        names["id2label"] = dict(enumerate(labels))
    config = transformers.BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=MOST,
        num_labels=len(labels or "ab"),
        **names,
        **changes,
    )
    maker = transformers.BertForSequenceClassification if head else transformers.BertModel
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return maker(config).eval()


def image_model(labels: list[str] | None = None) -> nn.Module:
    """Two layers of a vision transformer."""
    import transformers

    names = {} if labels is None else {"label2id": {label: i for i, label in enumerate(labels)}}
    if labels is not None:
        names["id2label"] = dict(enumerate(labels))
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=SIDE,
        patch_size=8,
        num_labels=len(labels or "ab"),
        **names,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return transformers.ViTForImageClassification(config).eval()


def save_processor(folder: Path) -> None:
    """The settings of an image processor, as `save_pretrained` writes them."""
    import json

    settings = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": SIDE, "width": SIDE},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.25, 0.25, 0.25],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
