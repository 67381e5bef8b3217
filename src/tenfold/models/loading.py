"""From a path to a model that runs: open, plan, allocate, fill, bind.

The first load of a checkpoint packs its weights for the kernels at hand and keeps the packed image;
later loads only read that image. Knows nothing of catalogues, devices or pages: the caller's
``allocate`` gives the memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from torch import Tensor

from tenfold.core.errors import ModelFileError
from tenfold.core.types import KVDtype, ModelFacts
from tenfold.kernels.base import Kernels
from tenfold.models.batch import Rank
from tenfold.models.checkpoint import open_checkpoint
from tenfold.models.decoder import Decoder
from tenfold.models.encoder import Encoder
from tenfold.models.packed_store import Image, PackedStore, Parts, fingerprint, read_image
from tenfold.models.packing import Weights, pack_model
from tenfold.models.spec import EncoderSpec, ModelSpec
from tenfold.models.weight_plan import WeightPlan, plan_weights

log = logging.getLogger(__name__)


class Refill(Protocol):
    """``parts``: first and last byte, exclusive, of what is to be written; None for everything."""

    def __call__(self, parts: Parts = None) -> None: ...


@dataclass(slots=True)
class LoadedModel:
    """A model ready to run. ``model`` is a Decoder (``forward``) or an Encoder (``embed``).

    ``refill`` writes the weights again into the memory they were loaded into, after it was given
    back and mapped anew: all of them, or at least some parts. Any thread may call it. ``image``:
    the file that it reads, where the packed weights are kept."""

    facts: ModelFacts
    spec: ModelSpec | EncoderSpec
    model: Decoder | Encoder
    plan: WeightPlan
    refill: Refill
    image: Path | None = None


def load_model(
    path: Path,
    kernels: Kernels,
    allocate: Callable[[int], Tensor],
    *,
    name: str,
    cache_dir: Path | None,
    rank: Rank | None = None,
    kv_dtype: KVDtype = "f32",
) -> LoadedModel:
    """Load the checkpoint at ``path`` (a GGUF file or a Hugging Face folder).

    ``allocate(nbytes)`` is called once, when the checkpoint is known to be sound, and gives a
    zeroed uint8 tensor on the CPU that outlives the model. ``cache_dir`` None keeps no packed
    image. ``kv_dtype``: how a decoder's keys and values are kept.
    Raises ModelFileError for what cannot be loaded, ConfigError for a rank group above one or a
    ``kv_dtype`` that the kernels do not know, and whatever ``allocate`` raises.
    """
    store = PackedStore(cache_dir, kernels.layout) if cache_dir else None
    key = _fingerprint(path) if store else ""
    if store and (image := store.find(key)):
        return _from_image(path, image, kernels, allocate, name, rank, kv_dtype)
    checkpoint = open_checkpoint(path)
    plan = plan_weights(checkpoint, kernels)
    buffer = allocate(plan.nbytes)

    def pack(parts: Parts = None) -> None:
        pack_model(checkpoint, plan, kernels, buffer)

    loaded = _bind(checkpoint.spec, plan, buffer, kernels, name, rank, kv_dtype, pack)
    pack()
    if store:
        store.save(key, checkpoint.spec, plan, buffer)
        if image := store.find(key):
            loaded.refill = partial(_again, path, image, kernels, buffer)
            loaded.image = image.data
    return loaded


def _again(path: Path, image: Image, kernels: Kernels, buffer: Tensor, parts: Parts = None) -> None:
    """Read the image, or parts of it, anew. Where it is gone (another version of the program may
    clear it away) the checkpoint is packed as it was; raises ModelFileError where that is another
    by now."""
    try:
        read_image(image, buffer, parts)
        return
    except (OSError, ModelFileError):
        log.warning("%s cannot be read any more; packing %s again", image.data, path)
    checkpoint = open_checkpoint(path)
    plan = plan_weights(checkpoint, kernels)
    if plan.to_dict() != image.plan.to_dict():
        raise ModelFileError(
            f"{path} has changed since it was loaded; unload the model, and load it"
        )
    pack_model(checkpoint, plan, kernels, buffer)


def _from_image(
    path: Path,
    image: Image,
    kernels: Kernels,
    allocate: Callable[[int], Tensor],
    name: str,
    rank: Rank | None,
    kv_dtype: KVDtype,
) -> LoadedModel:
    buffer = allocate(image.plan.nbytes)

    again = partial(_again, path, image, kernels, buffer)
    loaded = _bind(image.spec, image.plan, buffer, kernels, name, rank, kv_dtype, again)
    loaded.image = image.data
    read_image(image, buffer)
    return loaded


def _bind(
    spec: ModelSpec | EncoderSpec,
    plan: WeightPlan,
    buffer: Tensor,
    kernels: Kernels,
    name: str,
    rank: Rank | None,
    kv_dtype: KVDtype,
    refill: Refill,
) -> LoadedModel:
    weights = Weights(plan, buffer)
    model: Decoder | Encoder
    if isinstance(spec, EncoderSpec):
        model = Encoder(spec, weights, kernels)
    else:
        model = Decoder(spec, weights, kernels, rank, kv_dtype)
    facts = spec.facts(
        name, parameters=plan.parameters, weight_bytes=plan.nbytes, kv_dtype=kv_dtype
    )
    return LoadedModel(facts, spec, model, plan, refill)


def _fingerprint(path: Path) -> str:
    try:
        return fingerprint(path)
    except OSError as exc:
        raise ModelFileError(f"{path}: cannot be read: {exc.strerror}") from None
