"""Training that can be killed and goes on, with noise and shifts of the images."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from unitroles.files import (
    make_folder,
    read_regular,
    require,
    sealed,
    unsealed,
    write_whole,
)
from unitroles.zoo.images import ImageData
from unitroles.zoo.settings import ModelSettings, Recipe
from unitroles.zoo.vgg import small_vgg

_FACTS = ("train_accuracy", "test_accuracy", "true_label_accuracy", "epochs", "seconds")
_DIGEST = "content_sha256"


@dataclass(frozen=True)
class Trained:
    """A trained model and how good it is.

    Parameters
    ----------
    model : in eval mode, on the CPU.
    train_accuracy, test_accuracy : fractions, without augmentation or dropout; training by the
        given labels.
    true_label_accuracy : on the training images by the true labels; None without label noise.
    epochs : trained.
    seconds : wall-clock time of the training, summed over interruptions.
    reused : whether finished weights were found, so that nothing was trained in this call.
    """

    model: nn.Module
    train_accuracy: float
    test_accuracy: float
    true_label_accuracy: float | None
    epochs: int
    seconds: float
    reused: bool

    @property
    def gap(self) -> float:
        """Training accuracy minus test accuracy."""
        return self.train_accuracy - self.test_accuracy


def train(
    recipe: Recipe,
    data: ImageData,
    model_settings: ModelSettings,
    seed: int,
    weights: Path,
    on_epochs: Callable[[int], None] = lambda more: None,
    *,
    checkpoint_seconds: float = 3.0,
) -> Trained:
    """Train one model, go on with a killed training, or load a finished one.

    All randomness derives from `seed` and the epoch and each process computes on one CPU
    thread, so a training that was killed and started again ends, on the same machine type and
    number of processes, with the very weights of an undisturbed one.
    Finished weights count only for the same recipe, architecture, seed and data, whose common hash
    is in the metadata of the file.

    Parameters
    ----------
    recipe : hyper-parameters.
    data : the data set, loaded with the label noise of the recipe.
    model_settings : the architecture.
    seed : of initial weights, order of the samples, augmentation and dropout.
    weights : the file of the finished weights, NAME.safetensors, beside which checkpoints are kept;
        its folder is made if it does not exist.
    on_epochs : called on the main process with the number of epochs that were done since the last
        call: 1 after every epoch, and at the start those that an earlier call had done.
    checkpoint_seconds : least time between two checkpoints, which are taken between epochs only.

    Raises
    ------
    InputError : accelerate is not installed, or the folder cannot be written.
    ValueError : the label noise of data and recipe differ.
    """
    if data.label_noise != recipe.label_noise:
        raise ValueError(
            f"the recipe {weights.stem!r} has label noise {recipe.label_noise}, the data "
            f"{data.label_noise}: use load_images(name, settings, label_noise=recipe.label_noise)"
        )
    job = _Job(recipe, data, model_settings, seed, weights)
    with _undisturbed() as accelerator:
        trained = _finished(job)
        accelerator.wait_for_everyone()
        if trained is None:
            make_folder(weights.parent)
            trained = _run(job, accelerator, on_epochs, checkpoint_seconds)
        elif accelerator.is_main_process:
            job.checkpoint.unlink(missing_ok=True)  # of a training killed as it ended
            on_epochs(recipe.epochs)
    return trained


def settings_hash(recipe: Recipe, data: ImageData, model_settings: ModelSettings, seed: int) -> str:
    """The SHA-256 of all that decides the weights, as hexadecimal digits."""
    choices = {"recipe": asdict(recipe), "model": asdict(model_settings), "seed": seed}
    digest = hashlib.sha256(json.dumps(choices, sort_keys=True).encode())
    for array in (data.train_images, data.train_labels, data.test_images, data.test_labels):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Job:
    recipe: Recipe
    data: ImageData
    model_settings: ModelSettings
    seed: int
    weights: Path

    @cached_property
    def fingerprint(self) -> str:
        return settings_hash(self.recipe, self.data, self.model_settings, self.seed)

    @property
    def checkpoint(self) -> Path:
        return self.weights.with_name(self.weights.name + ".checkpoint")

    def network(self) -> nn.Module:
        return small_vgg(
            self.model_settings.channels,
            self.model_settings.hidden,
            self.recipe.dropout,
            (*self.data.train_images.shape[1:3], len(self.data.class_names)),
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """The networks are so small that threads cost more than they give on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _undisturbed() -> Iterator[Any]:
    """An Accelerator on one CPU thread; leaves RNG state and thread count as they were."""
    require("accelerate")
    from accelerate import Accelerator

    with one_thread():
        accelerator = Accelerator(mixed_precision="no")
        # The bits of a sum depend on the number of threads, which accelerate may have set.
        torch.set_num_threads(1)
        devices = [accelerator.device] if accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            yield accelerator


def _derived_seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint32)[0])


def _run(
    job: _Job,
    accelerator: Any,
    on_epochs: Callable[[int], None],
    checkpoint_seconds: float,
) -> Trained:
    recipe = job.recipe
    torch.manual_seed(_derived_seed(job.seed))
    bare = job.network()
    model, optimizer = accelerator.prepare(
        bare,
        torch.optim.AdamW(
            bare.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        ),
    )
    batches = math.ceil(len(job.data.train_labels) / recipe.batch_size)
    # The bare optimizer's schedule: accelerate would step it once per process.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer.optimizer, recipe.learning_rate, total_steps=recipe.epochs * batches
    )
    state = {"model": bare, "optimizer": optimizer.optimizer, "schedule": schedule}
    done, seconds = _resume(job, state, accelerator.device)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        on_epochs(done)
    start, saved = time.monotonic() - seconds, time.monotonic()
    for epoch in range(done, recipe.epochs):
        _epoch(job, epoch, accelerator, model, optimizer, schedule)
        now = time.monotonic()
        last = epoch + 1 == recipe.epochs
        if accelerator.is_main_process:
            if last or now - saved >= checkpoint_seconds:
                _save_checkpoint(job, state, epoch + 1, now - start)
                saved = now
            on_epochs(1)
    seconds = time.monotonic() - start
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    bare.to("cpu").eval()
    trained = _measure(job, bare, seconds)
    if accelerator.is_main_process:
        _save_weights(job, trained)
        job.checkpoint.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return trained


def _epoch(
    job: _Job, epoch: int, accelerator: Any, model: nn.Module, optimizer: Any, schedule: Any
) -> None:
    # Every process draws the same order and augmentation; only dropout differs between them.
    draw = torch.Generator().manual_seed(_derived_seed(job.seed, epoch + 1))
    torch.manual_seed(_derived_seed(job.seed, epoch + 1, accelerator.process_index))
    images = augment(torch.from_numpy(job.data.train_images), job.recipe, draw)
    order = torch.randperm(len(images), generator=draw)
    images = images[order].to(accelerator.device)
    labels = torch.from_numpy(job.data.train_labels)[order].to(accelerator.device)
    model.train()
    for batch in torch.arange(len(order)).split(job.recipe.batch_size):
        with accelerator.split_between_processes(batch, apply_padding=True) as own:
            loss = nn.functional.cross_entropy(model(images[own]), labels[own])
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def _measure(job: _Job, model: nn.Module, seconds: float) -> Trained:
    data = job.data
    on_train, on_test = _predict(model, data.train_images), _predict(model, data.test_images)
    by_truth = float(np.mean(on_train == data.true_train_labels))
    return Trained(
        model=model,
        train_accuracy=float(np.mean(on_train == data.train_labels)),
        test_accuracy=float(np.mean(on_test == data.test_labels)),
        true_label_accuracy=by_truth if job.recipe.label_noise else None,
        epochs=job.recipe.epochs,
        seconds=seconds,
        reused=False,
    )


def _predict(model: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        parts = torch.from_numpy(images).split(256)
        return torch.cat([model(part).argmax(1) for part in parts]).numpy()


def _resume(job: _Job, state: dict[str, Any], device: torch.device) -> tuple[int, float]:
    """Load the checkpoint if there is one of the same settings; return epochs and seconds.

    One that cannot be read, or is not as it was written, is as good as none.
    """
    fresh = {part: deepcopy(holder.state_dict()) for part, holder in state.items()}
    try:
        content, whole = unsealed(read_regular(job.checkpoint))
        stored = torch.load(BytesIO(content), map_location=device, weights_only=True)
        if not whole or stored["settings_hash"] != job.fingerprint:
            return 0, 0.0
        for part, holder in state.items():
            holder.load_state_dict(stored[part])
        return int(stored["epoch"]), float(stored["seconds"])
    except Exception:  # of every kind, where a file is damaged
        for part, holder in state.items():
            holder.load_state_dict(fresh[part])
        return 0, 0.0


def _save_checkpoint(job: _Job, state: dict[str, Any], epoch: int, seconds: float) -> None:
    stored = {part: holder.state_dict() for part, holder in state.items()}
    stored |= {"settings_hash": job.fingerprint, "epoch": epoch, "seconds": seconds}
    buffer = BytesIO()
    torch.save(stored, buffer)
    write_whole({job.checkpoint: sealed(buffer.getvalue())})


def _save_weights(job: _Job, trained: Trained) -> None:
    metadata = {name: json.dumps(getattr(trained, name)) for name in _FACTS}
    metadata |= {"settings_hash": job.fingerprint, "torch": str(torch.__version__)}
    weights = trained.model.state_dict()
    metadata[_DIGEST] = _digest(weights, metadata)
    write_whole({job.weights: save(weights, metadata=metadata)})


def _digest(weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """The SHA-256 of weights and of what is said about them."""
    said = sorted((name, text) for name, text in metadata.items() if name != _DIGEST)
    digest = hashlib.sha256(json.dumps(said).encode())
    for name, values in sorted(weights.items()):
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _finished(job: _Job) -> Trained | None:
    """Finished weights of the same settings.

    Those that cannot be read, or are not as they were written, are as good as none.
    """
    try:
        content = read_regular(job.weights)
        (length,) = struct.unpack_from("<Q", content)
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        if metadata["settings_hash"] != job.fingerprint:
            return None
        weights = load(content)
        if metadata.get(_DIGEST) not in (None, _digest(weights, metadata)):
            return None
        model = job.network()
        model.load_state_dict(weights)
        facts = {name: json.loads(metadata[name]) for name in _FACTS}
    except Exception:  # of every kind, where a file is damaged
        return None
    return Trained(model=model.eval(), reused=True, **facts)


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Shifted and noisier copies of images; pixels shifted in from outside are 0 before the noise.

    Parameters
    ----------
    images : float32 (samples, 1, height, width), on the CPU.
    recipe : gives the largest shift in pixels and the standard deviation of the noise.
    generator : the only source of randomness.
    """
    if recipe.augment_shift:
        images = _shift(images, recipe.augment_shift, generator)
    if recipe.augment_noise:
        noise = torch.randn(images.shape, generator=generator)
        images = images + recipe.augment_noise * noise
    return images


def _shift(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    samples, _, height, width = images.shape
    offsets = torch.randint(0, 2 * most + 1, (2, samples, 1), generator=generator)
    rows = (torch.arange(height) + offsets[0])[:, :, None]
    columns = (torch.arange(width) + offsets[1])[:, None, :]
    padded = nn.functional.pad(images, (most, most, most, most))
    return padded[torch.arange(samples)[:, None, None], 0, rows, columns][:, None]
