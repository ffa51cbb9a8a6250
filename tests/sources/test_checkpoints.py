"""Checkpoints as trainers write them: read, or named in one sentence; never the wrong weights."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from unitroles.errors import DataWarning, InputError
from unitroles.sources.factory import trained_model
from unitroles.sources.weights import load_weights

State = dict[str, Any]


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        made = nn.Sequential()
        made.add_module("body", nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
        made.add_module("head", nn.Linear(3, 2))
        return made


def state(seed: int = 1, before: str = "", between: str = "") -> State:
    """The weights of a net, their names changed as wrappers change them."""
    named = net(seed).state_dict().items()
    return {before + name.replace("body.", f"body.{between}"): value for name, value in named}


def is_net(model: nn.Module, seed: int = 1) -> bool:
    pairs = zip(model.state_dict().values(), net(seed).state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def loaded(content: Any, folder: Path, key: str | None = None) -> nn.Module:
    torch.save(content, folder / "w.pt")
    model = net()
    load_weights(model, folder / "w.pt", key)
    return model


def averaged() -> State:
    found = AveragedModel(net(1), multi_avg_fn=get_ema_multi_avg_fn(0.9))
    return dict(found.state_dict())


ADAM = {"state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(2.0)}}, "param_groups": []}
READ: dict[str, Any] = {
    "Lightning": {
        "state_dict": state(before="model."),
        "epoch": 3,
        "pytorch-lightning_version": "2.5",
        "optimizer_states": [ADAM],
        "lr_schedulers": [{"_last_lr": [0.1]}],
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
    },
    "Lightning, compiled": {"state_dict": state(before="model._orig_mod.")},
    "compiled inside": state(between="_orig_mod."),
    "data-parallel below a name": {"net": state(before="module.")},
    "everything at once": {"state": {"net": state(before="module._orig_mod.", between="module.")}},
    "sharded data-parallel": state(before="_fsdp_wrapped_module.", between="_fsdp_wrapped_module."),
    "recomputed activations": state(between="_checkpoint_wrapped_module."),
    "averaged": averaged(),
    "averaged below a name": {"model_state_dict": averaged()},
    "with its optimizer": {**state(), "optimizer": ADAM, "epoch": 3, "args": {"lr": 0.1}},
    "stored twice": {"model": state(), "model_ema": state()},
    "in a list": [state()],
}


@pytest.mark.parametrize("kind", READ)
def test_checkpoints_of_trainers(kind: str, tmp_path: Path) -> None:
    assert is_net(loaded(READ[kind], tmp_path))


def test_half_precision_is_read_in_full(tmp_path: Path) -> None:
    half = {n: v.half() if v.is_floating_point() else v for n, v in state().items()}
    for name, value in loaded(half, tmp_path).state_dict().items():
        assert torch.equal(value, half[name].to(value.dtype))


BOTH: dict[str, tuple[State, str, str]] = {
    "timm": ({"state_dict": state(1), "state_dict_ema": state(2)}, "state_dict", "state_dict_ema"),
    "beside a prefix": (
        {"state_dict": {**state(1, "model."), **state(2, "ema.module."), "ema.n_averaged": 5}},
        "state_dict.model",
        "state_dict.ema.module",
    ),
    "without a prefix": ({**state(1), **state(2, "ema.")}, ".", "ema"),
    "wrapped and not": ({**state(1), **state(2, "module.")}, ".", "module"),
    "Lightning": (
        {"state_dict": state(2, "model."), "current_model_state": state(1, "model.")},
        "current_model_state.model",
        "state_dict.model",
    ),
    "teacher and student": (
        {"student": state(1, "backbone."), "teacher": state(2, "backbone.")},
        "student.backbone",
        "teacher.backbone",
    ),
}


@pytest.mark.parametrize("kind", BOTH)
def test_averaged_weights_beside_the_plain_ones_are_a_question(kind: str, tmp_path: Path) -> None:
    content, plain, mean = BOTH[kind]
    with pytest.raises(
        InputError, match="holds several weights that fit .* --weights-key"
    ) as asked:
        loaded(content, tmp_path)
    assert repr(plain) in str(asked.value)
    assert repr(mean) in str(asked.value)
    assert is_net(loaded(content, tmp_path, plain), 1)
    assert is_net(loaded(content, tmp_path, mean), 2)
    with pytest.raises(InputError, match="unknown --weights-key of .* 'emaa'; .*known: "):
        loaded(content, tmp_path, "emaa")


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    content = {"state_dict": {**state(before="model."), "norm.mean": torch.ones(3)}}
    with pytest.warns(DataWarning, match="those of 'state_dict.model' in .*; state_dict.norm.mean"):
        assert is_net(loaded(content, tmp_path))
    shadow = {"model": state(), "ema": {"decay": 0.9, "shadow_params": [torch.ones(3)]}}
    with pytest.warns(DataWarning, match="ema.shadow_params.0 are left out"):
        assert is_net(loaded(shadow, tmp_path))


TWICE = {**state(), "body._orig_mod.0.weight": torch.ones(3, 4)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": state(before="model.", between="x.")}, "it lacks body.0.weight, body.0.bi"),
        ({"a": {**state(), "more": torch.ones(1)}}, "the model has no more; give weights of"),
        (TWICE, "twice it has body.0.weight; give weights"),
        (dict(reversed(TWICE.items())), "twice it has body._orig_mod.0.weight; give weights"),
        ({"weights": [1, 2]}, "holds no tensors by name; save the weights"),
        (torch.ones(2), "holds no tensors by name"),
    ],
)
def test_checkpoints_that_do_not_fit(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        loaded(content, tmp_path)


@pytest.mark.parametrize(
    "kind", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]
)
def test_numbers_of_another_kind_are_not_cast(kind: torch.dtype, tmp_path: Path) -> None:
    content = state()
    content["head.weight"] = content["head.weight"].to(kind)
    said = str(kind).removeprefix("torch.")
    with pytest.raises(InputError, match=f"head.weight is {said}, the model's float32; give"):
        loaded(content, tmp_path)


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    content = state()
    content["head.weight"] = torch.ones(2, 3)
    save_file({**content, "head.weight": torch.ones(2, 3, dtype=torch.int8)}, tmp_path / "w.st")
    with pytest.raises(InputError, match="head.weight is int8"):
        load_weights(net(), tmp_path / "w.st")


def test_counts_may_be_stored_as_other_whole_numbers(tmp_path: Path) -> None:
    content = state()
    content["body.1.num_batches_tracked"] = torch.tensor(7.0)
    assert loaded(content, tmp_path).state_dict()["body.1.num_batches_tracked"] == 7
    content["body.1.num_batches_tracked"] = torch.tensor(7.5)
    with pytest.raises(InputError, match="num_batches_tracked is float32, the model's int64"):
        loaded(content, tmp_path)


def test_numbers_too_large_for_the_model_are_not_made_infinite(tmp_path: Path) -> None:
    torch.save({"weight": torch.full((2, 2), 1e6), "bias": torch.zeros(2)}, tmp_path / "w.pt")
    load_weights(nn.Linear(2, 2).double(), tmp_path / "w.pt")
    with pytest.raises(InputError, match="weight is float32, the model's float16"):
        load_weights(nn.Linear(2, 2).half(), tmp_path / "w.pt")


def test_tied_weights_that_differ_are_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3, False), nn.Linear(3, 3, False))
    model[1].weight = model[0].weight
    torch.save({"0.weight": torch.ones(3, 3), "1.weight": torch.ones(3, 3)}, tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    torch.save({"0.weight": torch.ones(3, 3), "1.weight": torch.zeros(3, 3)}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="0.weight and 1.weight differ, which are one in the mod"):
        load_weights(model, tmp_path / "w.pt")


def test_weights_of_another_layout_and_models_without_shapes(tmp_path: Path) -> None:
    sparse = {**state(), "head.weight": torch.ones(2, 3).to_sparse()}
    with pytest.raises(InputError, match="head.weight in .* is sparse; save it as a plain"):
        loaded(sparse, tmp_path)
    torch.save(state(), tmp_path / "w.pt")
    for model in (nn.LazyLinear(2), nn.Linear(2, 2, device="meta")):
        with pytest.raises(InputError, match="weight, bias of the model hold no numbers yet; run"):
            load_weights(model, tmp_path / "w.pt")


class Strict(nn.Linear):
    def set_extra_state(self, state: Any) -> None:
        raise RuntimeError("a version that\nis not known")

    def get_extra_state(self) -> Tensor:
        return torch.ones(1)


def test_weights_that_a_layer_refuses(tmp_path: Path) -> None:
    model = Strict(2, 2)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    with pytest.raises(InputError, match="cannot be loaded into the model .*a version that is not"):
        load_weights(model, tmp_path / "w.pt")


def test_missing_numbers_are_equal_to_themselves(tmp_path: Path) -> None:
    content = {"weight": torch.ones(2, 2), "bias": torch.full((2,), float("nan"))}
    torch.save(content, tmp_path / "w.pt")
    model = nn.Linear(2, 2)
    load_weights(model, tmp_path / "w.pt")
    assert model.bias.isnan().all()


# --- sharded


def shards(folder: Path, **changes: Any) -> Path:
    """Two parts and their index; a change replaces the index's text or its map."""
    named: dict[str, Tensor] = state()
    parts = [dict(list(named.items())[:4]), dict(list(named.items())[4:])]
    where = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file(part, folder / file)
        where |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(changes.get("text") or json.dumps({"weight_map": where | changes}))
    return index


def test_an_index_stands_for_its_parts(tmp_path: Path) -> None:
    model = net()
    load_weights(model, shards(tmp_path))
    assert is_net(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": "{"}, "cannot be read as the index of a sharded checkpoint"),
        ({"text": "[" * 100_000}, "cannot be read as the index of a sharded checkpoint"),
        ({"text": "[]"}, "cannot be read as the index of a sharded checkpoint"),
        ({"text": "{}"}, "cannot be read as the index .*weight_map"),
        ({"head.bias": "../w.safetensors"}, "names '../w.safetensors', which is not beside it"),
        ({"head.bias": "gone.safetensors"}, "names 'gone.safetensors', which is not beside it"),
        ({"tail.bias": "model-00001-of-00002.safetensors"}, "names lack tail.bias"),
    ],
)
def test_an_index_that_leads_nowhere(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    index = shards(tmp_path, **changes)
    (tmp_path.parent / "w.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=message):
        load_weights(net(), index)


def test_a_part_and_a_folder_name_what_to_give(tmp_path: Path) -> None:
    part = shards(tmp_path).with_name("model-00001-of-00002.safetensors")
    with pytest.raises(InputError, match="is one of 2 parts; give the index beside it"):
        load_weights(net(), part)
    with pytest.raises(
        InputError, match="is a folder; give the file .*it has model-00001-of-00002"
    ):
        load_weights(net(), tmp_path)


# --- the rest


def test_the_conversion_keeps_all_weights_apart(tmp_path: Path) -> None:
    content = {"state_dict": state(1), "state_dict_ema": state(2), "args": Path("x"), "epoch": 3}
    with pytest.raises(InputError) as caught:
        loaded(content, tmp_path)
    _, command = str(caught.value).split("convert it once with: ")
    subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True)
    model = net()
    with pytest.raises(InputError, match="several weights .* 'state_dict', 'state_dict_ema'; name"):
        load_weights(model, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors", "state_dict_ema")
    assert is_net(model, 2)


def test_a_key_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--weights-key names weights in a file; give the file"):
        trained_model("torchvision:squeezenet1_1", weights_key="ema")
