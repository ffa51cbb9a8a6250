"""What language models do to samples and positions: small ones of several families."""

import pytest
import torch
from torch import nn

from forcing import find, traced
from unitroles.engine.choice import choose_plans
from unitroles.engine.masks import Prefixes
from unitroles.model.borrow import untouched
from unitroles.model.forward import Precision, logits_of, rows_of
from unitroles.model.hooks import run_body, run_masked
from unitroles.options import Layer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")

PROCESSOR = Precision(torch.device("cpu"))
# fmt: off
MODELS = {
    # Conv1D: `addmm` with the weight turned round, on rows of all positions in one axis
    "gpt2": ("GPT2", "transformer.h.0.mlp.act", "additive",
             {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8}),
    # a bias with a row for every sample and head of the attention flows around the layer
    "bloom": ("Bloom", "transformer.h.0.mlp.gelu_impl", "additive",
              {"hidden_size": 8, "n_layer": 2, "n_head": 2}),
    # views of what is no longer next to each other in memory
    "t5": ("T5", "transformer.encoder.block.0.layer.1.DenseReluDense.act", "additive",
           {"d_model": 8, "num_layers": 1, "num_heads": 2, "d_kv": 4, "d_ff": 12,
            "decoder_start_token_id": 0}),
    "bart": ("Bart", "model.encoder.layers.0.fc1", "additive",
             {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 12,
              "encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 12,
              "max_position_embeddings": 16, "decoder_start_token_id": 2}),
}
# fmt: on


def build(family: str, options: dict[str, object]) -> nn.Module:
    torch.manual_seed(0)
    tokens = {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, f"{family}Config")(**tokens, num_labels=3, **options)
    model = getattr(transformers, f"{family}ForSequenceClassification")(config).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=0.3)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_a_faster_plan_equals_each_sample_alone(name):
    family, layer, wanted, options = MODELS[name]
    model = build(family, options)
    ids = torch.randint(3, 20, (5, 6), generator=torch.Generator().manual_seed(0))
    ids[:, 4], real = 2, torch.ones_like(ids)
    ids[:, 5], real[:, 5] = 0, 0  # one token of padding
    inputs = PROCESSOR.place({"input_ids": ids, "attention_mask": real})
    few = rows_of(inputs, slice(2))
    with untouched(model):
        site = find(model, Layer(layer, axis=2), few)
        seen = traced(model, few)
        (choice,) = choose_plans(model, [site], seen, 2**30, PROCESSOR)
    assert choice.plan.name == wanted, choice.notes
    assert not choice.notes
    order = torch.stack([torch.randperm(site.units) for _ in ids])
    points = [0, 3, site.units - 1]
    with untouched(model), torch.inference_mode():
        kept = choice.plan.keep(run_body(model, choice.plan.places, inputs), inputs)
        runs = choice.plan.run(kept, Prefixes(order, points))
        found = torch.cat([logits.clone() for _, logits in runs])
        masks = Prefixes(order, points).retrieved_in(slice(None))
        for place in range(len(ids)):
            mine, row = rows_of(inputs, slice(place, place + 1)), slice(place, place + 1)
            alone = torch.cat([run_masked(model, site, mine, mask[row]) for mask in masks])
            torch.testing.assert_close(found[:, place], alone, rtol=1e-4, atol=1e-5)
            assert (alone - logits_of(model(**mine))).abs().max() > 1e-3
