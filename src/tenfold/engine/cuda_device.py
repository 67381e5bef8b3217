"""A CUDA device: pages of its memory, the Triton column, staged weights and graphs.

Everything else is the CPU device's: models are loaded, limited, counted and freed by the same code.
Not yet run on a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from tenfold.core.clock import Clock
from tenfold.core.errors import ConfigError
from tenfold.core.messages import LoadModel
from tenfold.core.settings import DeviceSettings
from tenfold.core.types import EngineRequest, KVDtype, ModelFacts
from tenfold.engine.batcher import Neighbours
from tenfold.engine.cuda_runner import CudaRunner, GraphLimits
from tenfold.engine.cuda_weights import PinnedWeights
from tenfold.engine.device import Device
from tenfold.engine.instance import Instance
from tenfold.engine.runner import TorchRunner
from tenfold.engine.sampler_state import SamplerState, TokenMatcher
from tenfold.engine.sampling import Sampler
from tenfold.engine.weights import ModelWeights
from tenfold.kernels.base import Kernels
from tenfold.kernels.cuda_graphs import Graphs
from tenfold.kernels.cuda_staging import CopyEngine, CudaCopies, Uploads
from tenfold.kernels.flashinfer_adapter import find_flashinfer
from tenfold.kvcache.cache import KVCache
from tenfold.memory.backends import open_backend
from tenfold.memory.base import PageBackend
from tenfold.models.decoder import Decoder
from tenfold.models.loading import LoadedModel

SHARE = 0.8
"""Of the free memory: the pool's, where no size is given. Activations and graphs get the rest."""


class CudaDevice(Device):
    """``settings.name`` is "cuda:N". Raises ConfigError where that device cannot be used.

    Weights are dequantised to ``settings.cuda_dtype`` as they are loaded, so no packed image is
    kept on disk; keys and values have that type too, unless ``kv_dtype`` names another.
    ``kernels_mode`` is for CPUs."""

    def __init__(self, settings: DeviceSettings) -> None:
        self.device = self._find(settings.name)
        types = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
        self.dtype = types[settings.cuda_dtype]
        self.copies = self._copies()
        self.uploads = Uploads(self.copies)
        super().__init__(replace(settings, cache_dir="", backend="cuda"))
        torch.set_num_threads(self.threads)  # dequantising is the CPU's work, and torch's

    def _find(self, name: str) -> torch.device:
        found = re.fullmatch(r"cuda(?::(\d+))?", name)
        if not found:
            raise ConfigError(
                f"device.name {name!r} names no CUDA device; write cuda:0, cuda:1, ..."
            )
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(found[1] or 0)
        if index >= count:
            raise ConfigError(
                f"there is no device cuda:{index}: torch {torch.__version__} sees {count} CUDA "
                "devices; use a CUDA build of torch and a machine with a GPU, or device.name cpu:0"
            )
        torch.cuda.set_device(index)
        return torch.device("cuda", index)

    def _use(self) -> None:
        torch.cuda.set_device(self.device)

    def _copies(self) -> CopyEngine:
        return CudaCopies(self.device)

    def _kv_dtype(self) -> KVDtype:
        chosen = self.settings.kv_dtype
        return self.settings.cuda_dtype if chosen == "auto" else chosen

    def _open_kernels(self) -> Kernels:
        try:
            from tenfold.kernels.triton_column import TritonKernels
        except ImportError as exc:
            raise ConfigError(
                f"a CUDA device needs Triton, which does not import: {exc}; CUDA builds of torch "
                "bring it"
            ) from exc
        return TritonKernels(
            self.device,
            self.dtype,
            find_flashinfer(self.device),
            Graphs() if self.settings.cuda_graphs else None,
            self.uploads,
        )

    def _free_memory(self) -> int:
        return int(SHARE * torch.cuda.mem_get_info(self.device)[0])

    def _open_backend(self) -> PageBackend:
        return open_backend("cuda", self.settings.page_bytes, device=self.device.index)

    def _graph_memory(self) -> int:
        """Bytes that torch holds outside the pool; graphs' memory is among them."""
        return int(torch.cuda.memory_reserved(self.device))

    def load(
        self,
        command: LoadModel,
        clock: Clock,
        neighbours: Neighbours,
        make_room: Callable[[int], bool],
    ) -> Instance:
        """As ``Device.load``; weights have arrived on the device when it returns."""
        self._use()  # threads begin with another device
        try:
            return super().load(command, clock, neighbours, make_room)
        finally:
            self.uploads.finish()

    def _weights(self, name: str, loaded: LoadedModel) -> ModelWeights:
        space = self._ranges[name]["weights"]
        arrived = self.uploads.finish
        return PinnedWeights(space, loaded.refill, self.copies, self._use, arrived)

    def _runner(
        self,
        model: Decoder,
        facts: ModelFacts,
        cache: KVCache,
        kv: list[Tensor],
        new_state: Callable[[EngineRequest, TokenMatcher | None], SamplerState],
    ) -> TorchRunner:
        self.uploads.finish()  # the first passes, before any request, need the weights
        settings = self.settings
        model.prepare(facts.context_length + settings.block_tokens)
        limits = GraphLimits(
            settings.max_running,
            facts.context_length,
            settings.cuda_graph_bytes,
            self._graph_memory,
            torch.cuda.empty_cache,
        )
        return CudaRunner(
            model, cache, kv, Sampler(facts.name), new_state,
            device=self.device, copies=self.copies, limits=limits, quiet=self.pool.held,
        )  # fmt: skip
