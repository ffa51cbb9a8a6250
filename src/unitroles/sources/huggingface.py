"""Models in the form of Hugging Face transformers: a folder or a name; only tensors are read."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from unitroles.errors import InputError
from unitroles.sources.vision import needed
from unitroles.sources.weights import conversion
from unitroles.wording import few, first_line

_CLASSIFIERS = ("ForImageClassification", "ForSequenceClassification")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = "pytorch_model.bin"
_FOREIGN = ("pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack", "model.ckpt.index")
_FLOATING = ("F64", "F32", "F16", "BF16")
_TOKENS = 16
USUAL_SIDE = 224
"""Of a picture in pixels, where nothing is known of it."""


def hub_model(name: str, bare: bool = False) -> nn.Module:
    """An image or text classifier, with its weights from safetensors.

    Parameters
    ----------
    name : a folder written by `save_pretrained`, or a name on the Hugging Face hub.
    bare : random weights; none are looked for.

    Raises
    ------
    InputError : no such folder or name, no classifier, code of its own, or no weights that can be
        read without running anything.
    """
    transformers = needed("transformers", "hf")
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(
                f"the folder {name} has no config.json; give one written by save_pretrained"
            )
    elif folder.is_absolute() or name.startswith(("./", "../", "~")) or name.count("/") > 1:
        raise InputError(f"there is no folder {name}; give one written by save_pretrained")
    with _reading(name):
        config = _loaded(transformers.AutoConfig, name)
    maker = _maker(name, config)
    if bare:
        with _quiet(), _reading(name):
            return maker.from_config(config, trust_remote_code=False).float()
    if folder.is_dir():
        _check_weights(folder)
    with _reading(name):
        model, found = _loaded(
            maker, name, config=config, use_safetensors=True, output_loading_info=True
        )
    if missing := sorted(found["missing_keys"]):
        raise InputError(
            f"hf:{name} holds no weights for {few(missing)}; train it as a classifier first, or "
            "give the trained weights with --weights"
        )
    if folder.is_dir():
        _check_kinds(folder, model)
    return model.float()  # what was stored in half precision is analysed in full


def kind_of(model: nn.Module) -> str | None:
    """ "image" or "text" for a classifier of transformers."""
    main = getattr(model, "main_input_name", None)
    return {"pixel_values": "image", "input_ids": "text"}.get(str(main))


def label_numbers(model: nn.Module) -> dict[str, int]:
    """The class numbers by name in the model's configuration; {} where nobody gave names.

    Raises
    ------
    InputError : a number is none of a class.
    """
    config: Any = getattr(model, "config", None)
    names = getattr(config, "id2label", None) or {}
    numbers = getattr(config, "label2id", None) or {name: n for n, name in names.items()}
    if all(re.fullmatch(r"LABEL_\d+", str(label)) for label in numbers):
        return {}
    count = max(len(numbers), getattr(config, "num_labels", None) or 0)
    for label, number in numbers.items():
        if not re.fullmatch(r"\d{1,18}", str(number)) or int(number) >= count:
            raise InputError(
                f"label2id in the configuration of the model gives class {label!r} the number "
                f"{str(number)[:30]}, not one of its {count} classes from 0; correct it"
            )
        if label in names.values() and names.get(int(number)) != label:
            raise InputError(
                f"label2id in the configuration of the model gives class {label!r} the number "
                f"{number}, id2label another one; correct the one that is wrong"
            )
    return {str(label): int(number) for label, number in numbers.items()}


def picture_input(
    name: str, model: nn.Module
) -> tuple[Callable[[Any], Any] | None, tuple[int, ...]]:
    """The input that an image classifier of transformers is made for.

    Returns
    -------
    Its own image processor, for one PIL picture, or None where it has none; channels, height and
    width of a picture.
    """
    transformers = needed("transformers", "hf")
    processor: Any = None
    missing: ImportError | None = None
    try:
        processor = _loaded(transformers.AutoImageProcessor, name)
    except ImportError as error:  # of a library that only pictures need
        missing = error
    except (OSError, ValueError):
        pass

    def transform(picture: Any) -> Any:
        if missing is not None:
            raise InputError(
                f"the image processor of {name} needs more: {first_line(missing)}; install it with "
                "pip install 'unitroles[vision]', or give --transform"
            ) from missing
        return processor(images=picture, return_tensors="pt")["pixel_values"][0]

    config: Any = model.config
    crops = getattr(processor, "do_center_crop", None)
    size = getattr(processor, "crop_size" if crops else "size", None) or {}
    edge = size.get("shortest_edge", USUAL_SIDE)
    read = (size["height"], size["width"]) if "height" in size else edge
    side = getattr(config, "image_size", None) or read
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    shape = getattr(config, "num_channels", 3), height, width
    return None if processor is None and missing is None else transform, shape


def tokenizer_of(name: str) -> Any:
    """The tokenizer in a folder, or of a name on the hub."""
    transformers = needed("transformers", "hf")
    try:
        return _loaded(transformers.AutoTokenizer, name)
    except Exception as error:  # every kind of tokenizer fails in its own way
        raise InputError(
            f"there is no tokenizer in {name} ({first_line(error)}); give the folder or the name "
            "of the one used in training with --tokenizer"
        ) from error


def tokens_at_most(model: nn.Module) -> int | None:
    """The longest text that a model of transformers can take, in tokens."""
    return getattr(getattr(model, "config", None), "max_position_embeddings", None)


def token_shape(model: nn.Module) -> tuple[int, int]:
    """Tokens in an example and in the vocabulary."""
    config: Any = model.config
    return min(_TOKENS, tokens_at_most(model) or _TOKENS), config.vocab_size


def _maker(name: str, config: Any) -> Any:
    """The class for what the model was saved as; else one that its configuration is made for."""
    transformers = needed("transformers", "hf")
    makers = {ending: getattr(transformers, f"AutoModel{ending}") for ending in _CLASSIFIERS}
    saved = [str(known) for known in getattr(config, "architectures", None) or ()]
    for ending, maker in makers.items():
        if any(known.endswith(ending) for known in saved):
            return maker
    for maker in makers.values():
        if type(config) in maker._model_mapping:
            return maker
    what = few(saved) or config.model_type
    raise InputError(
        f"hf:{name} is a {what}, neither an image nor a text classifier; give a model saved with "
        f"a classification head, or package.module:factory"
    )


def _check_weights(folder: Path) -> None:
    """Before transformers looks for them: it would read a pickle, or say that nothing is there."""
    if any((folder / name).is_file() for name in _WEIGHTS):
        return
    pickled, target = folder / _PICKLED, folder / _WEIGHTS[0]
    if pickled.is_file():
        raise InputError(
            f"{folder} holds its weights as a pickle ({_PICKLED}), which could run code and was "
            f"not loaded; {conversion(pickled, target)}"
        )
    foreign = [name for name in _FOREIGN if (folder / name).is_file()]
    said = f"only {few(foreign)}" if foreign else "no weights"
    raise InputError(
        f"{folder} holds {said}, not {_WEIGHTS[0]}; save it again with save_pretrained, or give a "
        "file of weights with --weights"
    )


def _check_kinds(folder: Path, model: nn.Module) -> None:
    """Numbers of another kind, which transformers casts without a word.

    Raises
    ------
    InputError : a weight of floating point is stored as whole numbers, as booleans, in 8 bits, ...
    """
    own = model.state_dict()
    for file in sorted(folder.glob("model*.safetensors")):
        with needed("safetensors", "hf").safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118, it is no dict
                kind = stored.get_slice(name).get_dtype()
                if name in own and own[name].is_floating_point() and kind not in _FLOATING:
                    raise InputError(
                        f"{name} in {file} is {kind}, the model's "
                        f"{str(own[name].dtype).removeprefix('torch.')}; quantised weights have "
                        "scales of their own: give those of floating point that they were made of"
                    )


def _loaded(maker: Any, name: str, **options: Any) -> Any:
    """The object that a class of transformers makes of a folder or a name, without foreign code."""
    here = Path(name).is_dir()  # it is complete or an error: nothing is looked up elsewhere
    with _quiet():
        return maker.from_pretrained(
            name, trust_remote_code=False, local_files_only=here, **options
        )


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """One sentence for what transformers says in many."""
    try:
        yield
    except Exception as error:  # damaged files and foreign formats fail anywhere
        if "trust_remote_code" in str(error):
            reason = "it needs code of its own, which is never run"
            remedy = "give a model that transformers itself knows, or package.module:factory"
        elif Path(name).is_dir():
            reason, remedy = first_line(error), "give a folder written by save_pretrained"
        else:
            reason = f"there is no such folder, and the hub did not give it: {first_line(error)}"
            remedy = (
                "give a folder written by save_pretrained, or check name and network "
                "(HF_HUB_OFFLINE=1 takes what was downloaded before)"
            )
        raise InputError(f"hf:{name} cannot be read: {reason.rstrip('.')}; {remedy}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No messages and no bars: what matters of them is an error here, in one line."""
    own = needed("transformers.utils.logging", "hf")
    disabled, bars = logging.root.manager.disable, own.is_progress_bar_enabled()
    logging.disable(logging.CRITICAL)
    own.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        if bars:
            own.enable_progress_bar()
