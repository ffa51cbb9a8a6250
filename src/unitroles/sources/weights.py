"""Weights from files of tensors, as trainers write them; no pickle is run."""

from __future__ import annotations

import json
import os
import re
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from unitroles.errors import DataWarning, InputError, unknown
from unitroles.wording import few, first_line

_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What data-parallel training, `torch.compile`, averaging and the like put into names."""
_TRAINING = ("optimizer", "lr_scheduler", "scheduler", "scaler", "callbacks", "n_averaged", "rng")
"""How the names of what else checkpoints hold begin: no forward uses it."""
_WHOLE = "."
"""Stands for the weights that have no name before theirs."""
_INDEX = ".index.json"
_PART = re.compile(r"-\d+-of-(\d+)\.\w+$")
_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".json")
_CONVERT = (
    "import sys, torch, safetensors.torch as s; "
    "c = torch.load(sys.argv[1], map_location='cpu', weights_only=False); "
    "c = c.state_dict() if hasattr(c, 'state_dict') else c; "
    "f = lambda o, p: {p[1:]: o.clone().contiguous()} if torch.is_tensor(o) else {k: v for n, x in "
    "o.items() for k, v in f(x, p + '.' + str(n)).items()} if hasattr(o, 'items') else {}; "
    "s.save_file(f(c, ''), sys.argv[2], {'format': 'pt'})"
)


def load_weights(model: nn.Module, path: str | os.PathLike[str], key: str | None = None) -> None:
    """Fill a model from a safetensors file or from a PyTorch file of tensors.

    The weights are found wherever all of the model's names stand below one name, whatever
    data-parallel training, `torch.compile`, averaging or Lightning put before or between them. The
    index of a sharded checkpoint ("...index.json") stands for its parts.

    Parameters
    ----------
    key : which weights, where a file holds several that fit, such as averaged ones beside the plain
        ones: the name that they stand below.

    Raises
    ------
    InputError : the file is absent, unreadable or holds Python objects; does not fit the model, or
        several weights in it do; or has numbers of another kind, such as int8.

    Warns
    -----
    DataWarning : other weights of the file are left out.
    """
    path = Path(path)
    found = _flat(_content(path))
    if not found:
        raise InputError(
            f"{path} holds no tensors by name; save the weights with "
            "torch.save(model.state_dict(), ...) or safetensors"
        )
    if sparse := [name for name, value in found.items() if value.layout != torch.strided]:
        raise InputError(f"{few(sparse)} in {path} is sparse; save it as a plain tensor (to_dense)")
    own = {name: v for name, v in model.state_dict().items() if isinstance(v, Tensor)}
    if lazy := [name for name, value in own.items() if is_lazy(value) or value.is_meta]:
        raise InputError(
            f"{few(lazy)} of the model hold no numbers yet; run the model once on the CPU before "
            "it is returned"
        )
    groups = _groups(found, own)
    chosen = _chosen(groups, key, path)
    others = {n for group in groups if group.fits and group is not chosen for n in group.names}
    rest = [name for name in found if name not in chosen.names | others and not _of_training(name)]
    below = [name for name in rest if name.startswith(chosen.prefix)]
    state = dict(chosen.tensors)
    plain = {_plain(name.removeprefix(chosen.prefix)): name for name in below}
    twice = [name for short, name in plain.items() if short in state]
    # The others: what a layer reads under an older name, or nobody reads.
    state.update({short: found[name] for short, name in plain.items() if short not in state})
    wrong = _misfits(state, own)
    missing, unexpected = [], []
    if not wrong:
        missing, unexpected = _filled(model, state, path)
        tied = {own[name].data_ptr() for name in state if name in own}
        missing = [name for name in missing if name not in own or own[name].data_ptr() not in tied]
    said = {
        "": wrong,
        "it lacks ": missing,
        "the model has no ": unexpected,
        "twice it has ": twice,
    }
    said = [what + few(names) for what, names in said.items() if names]
    if said:
        remedy = "give weights of this model, or the MODEL they were saved from"
        raise InputError(f"{path} does not fit the model: {', '.join(said)}; {remedy}")
    if left := [name for name in rest if name not in below]:
        warnings.warn(
            f"the weights are those of {chosen.key!r} in {path}; {few(left)} are left out. Check "
            "that no forward needs them",
            DataWarning,
            stacklevel=2,
        )


def _filled(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> Any:
    """Load what is there; the names that are missing, and those that the model does not have."""
    try:
        return model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # a layer of the model refuses them
        raise InputError(
            f"{path} cannot be loaded into the model ({' '.join(str(error).split())}); save the "
            "weights as plain tensors of this model"
        ) from error


def conversion(path: Path, target: Path) -> str:
    """The way from a file of Python objects that is trusted to one of tensors."""
    files = f"{shlex.quote(str(path))} {shlex.quote(str(target))}"
    return f'if you trust it, convert it once with: python -c "{_CONVERT}" {files}'


@dataclass(frozen=True)
class _Group:
    """Tensors of a file that may be the model's weights.

    Parameters
    ----------
    prefix : what all names in the file begin with, up to and with the last dot.
    tensors : by the model's names.
    names : by the names in the file.
    fits : whether all that the model has is there, in its shape.
    """

    prefix: str
    tensors: Mapping[str, Tensor]
    names: frozenset[str]
    fits: bool

    @property
    def key(self) -> str:
        """What `--weights-key` calls it."""
        return self.prefix.rstrip(".") or _WHOLE

    def same(self, other: _Group) -> bool:
        """Whether both hold equal numbers."""
        return all(
            value.dtype == other.tensors[name].dtype and torch.equal(value, other.tensors[name])
            for name, value in self.tensors.items()
            if name in other.tensors
        )


def _groups(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[_Group]:
    """All places of a file where names of the model stand, those first that have most of them."""
    plain = {_plain(name): name for name in own}
    if len(plain) < len(own):  # the model itself tells names apart by what wrappers add
        plain = {name: name for name in own}
    places: dict[str, dict[str, str]] = {}
    for name in found:
        parts = name.split(".")
        for start in range(len(parts)):
            short = ".".join(parts[start:])
            mine = plain.get(short, plain.get(_plain(short)))
            if mine is not None and (parts[start] not in _WRAPPERS or short in plain):
                prefix = "".join(f"{part}." for part in parts[:start])
                places.setdefault(prefix, {})[mine] = name
    groups = [_group(prefix, names, found, own) for prefix, names in places.items()]
    return sorted(groups, key=lambda group: (not group.fits, -len(group.names)))


def _group(
    prefix: str, names: Mapping[str, str], found: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> _Group:
    tensors = {mine: found[name] for mine, name in names.items()}
    tied = {own[name].data_ptr() for name in tensors}
    fits = all(
        tensors[name].shape == value.shape if name in tensors else value.data_ptr() in tied
        for name, value in own.items()
        if not name.endswith("num_batches_tracked")  # older files have none
    )
    return _Group(prefix, tensors, frozenset(names.values()), fits)


def _chosen(groups: Sequence[_Group], key: str | None, path: Path) -> _Group:
    """The group that the user named, or the only one that fits, or nearly does.

    Raises
    ------
    InputError : there is no such group; or several fit and differ.
    """
    fitting = [group for group in groups if group.fits]
    if key is not None:
        named = next((group for group in groups if group.key == key), None)
        if named is None:
            known = [group.key for group in fitting or groups]
            raise unknown(f"--weights-key of {path}", key, known or ["nothing like the model"])
        return named
    if any(not group.same(fitting[0]) for group in fitting[1:]):
        keys = [repr(group.key) for group in fitting]
        raise InputError(
            f"{path} holds several weights that fit the model: {few(keys)}; name those that are to "
            "be analysed with --weights-key"
        )
    return groups[0] if groups else _Group("", {}, frozenset(), False)


def _misfits(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """What has another shape than in the model, or is of another kind of numbers."""
    pairs = [(name, value, own[name]) for name, value in state.items() if name in own]
    shapes = [
        f"{name} is {tuple(value.shape)}, the model's {tuple(mine.shape)}"
        for name, value, mine in pairs
        if value.shape != mine.shape
    ]
    kinds = [
        f"{name} is {str(value.dtype).removeprefix('torch.')}, the model's "
        f"{str(mine.dtype).removeprefix('torch.')}"
        for name, value, mine in pairs
        if not _can_become(value, mine.dtype)
    ]
    first: dict[tuple[int, torch.Size], tuple[str, Tensor]] = {}
    tied = []
    for name, value, mine in pairs if not shapes + kinds else []:
        other, stored = first.setdefault((mine.data_ptr(), mine.shape), (name, value))
        if stored is not value and not torch.equal(stored, value):
            tied.append(f"{other} and {name} differ, which are one in the model")
    return shapes or kinds or tied


def _can_become(value: Tensor, wanted: torch.dtype) -> bool:
    """Whether a cast keeps the meaning: quantised numbers have scales that it does not know."""
    kind = value.dtype
    if kind == wanted:
        return True
    if wanted.is_floating_point:
        if not kind.is_floating_point or kind.itemsize == 1:
            return False
        return torch.equal(value.to(wanted).isinf(), value.isinf())
    if wanted.is_complex or kind.is_complex or value.is_quantized:
        return wanted.is_complex and kind.is_complex
    return torch.equal(value.to(wanted).to(kind), value)


def _plain(name: str) -> str:
    """A name without what wrappers add."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _of_training(name: str) -> bool:
    return any(part.lower().startswith(_TRAINING) for part in name.split("."))


def _flat(content: Any, above: str = "") -> dict[str, Tensor]:
    """All tensors of a checkpoint, by the names on the way to them."""
    if isinstance(content, Tensor) and above:
        return {above: content}
    inside: Any = ()
    if isinstance(content, Mapping):
        inside = content.items()
    elif isinstance(content, (list, tuple)):
        inside = enumerate(content)
    found: dict[str, Tensor] = {}
    for name, value in inside:
        found.update(_flat(value, f"{above}.{name}" if above else str(name)))
    return found


def _content(path: Path) -> Any:
    """What a file holds, or all parts of a sharded checkpoint."""
    if path.is_dir():
        files = [p.name for p in sorted(path.iterdir()) if p.suffix in _ENDINGS]
        near = f" (it has {few(files)})" if files else ""
        raise InputError(
            f"{path} is a folder; give the file of weights in it, of a sharded checkpoint the "
            f"*{_INDEX}, of a distributed one what torch.distributed.checkpoint.format_utils makes "
            f"of it{near}"
        )
    if not path.is_file():
        raise InputError(f"there is no weights file {path}; give a safetensors or PyTorch file")
    if path.name.endswith(_INDEX):
        return _parts(path)
    if (part := _PART.search(path.name)) and int(part[1]) > 1:
        raise InputError(
            f"{path} is one of {int(part[1])} parts; give the index beside it, a file that ends in "
            f"{_INDEX}"
        )
    return _read(path)


def _parts(index: Path) -> dict[str, Any]:
    """The tensors of all the files that an index names, which lie beside it."""
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        wanted = {str(name): str(file) for name, file in files.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{index} cannot be read as the index of a sharded checkpoint ({first_line(error)}); "
            "give one with a weight_map"
        ) from error
    found: dict[str, Any] = {}
    for file in sorted(set(wanted.values())):
        if Path(file).name != file or not (index.parent / file).is_file():
            raise InputError(
                f"{index} names {file!r}, which is not beside it; add the missing part"
            )
        found.update(_read(index.parent / file))
    if absent := [name for name in wanted if name not in found]:
        raise InputError(f"the parts that {index} names lack {few(absent)}; save it again")
    return {name: found[name] for name in wanted}


def _read(path: Path) -> Any:
    """The content of the file, read without running anything in it."""
    with path.open("rb") as file:
        head = file.read(9)
    try:
        if head[8:] == b"{":  # eight bytes of length, then JSON: safetensors
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error says it all, and in one line
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file can make a reader raise anything
        raise InputError(
            f"{path} cannot be read as weights: it is damaged, of another format, or holds Python "
            "objects, which could run code and were not loaded; "
            + conversion(path, path.with_suffix(".safetensors"))
        ) from error
