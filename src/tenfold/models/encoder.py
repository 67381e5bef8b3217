"""The BERT encoder: several texts in, one vector of length one for each.

Shape letters: T tokens of all texts together, N texts, n tokens of one text, I hidden size, H
heads, D head dim. Linear layers run over all texts at once, attention and pooling over one at a
time, so a text's vector does not depend on its neighbours. Knows nothing of tokenising.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tenfold.core.errors import ContextTooLong, InvalidRequest
from tenfold.core.types import KVGroup
from tenfold.kernels.base import Kernels
from tenfold.models.elementwise import blockwise
from tenfold.models.layers import Linear
from tenfold.models.packing import Weights
from tenfold.models.spec import EncoderSpec


@dataclass(slots=True)
class _LayerNorm:
    weight_I: Tensor
    bias_I: Tensor
    eps: float

    def __call__(self, x_TI: Tensor) -> Tensor:
        return functional.layer_norm(
            x_TI, self.weight_I.shape, self.weight_I, self.bias_I, self.eps
        )


class _EncoderLayer:
    """Bidirectional attention and a GELU MLP, each added and then normed (BERT's post-norm)."""

    def __init__(self, spec: EncoderSpec, layer: int, weights: Weights, kernels: Kernels) -> None:
        at = f"layers.{layer}."
        bias = weights.vector(f"{at}q_bias", f"{at}k_bias", f"{at}v_bias")
        self._qkv = Linear(kernels, weights.matrices(f"{at}q", f"{at}k", f"{at}v"), bias)
        self._o = _linear(at + "o", weights, kernels)
        self._up = _linear(at + "up", weights, kernels)
        self._down = _linear(at + "down", weights, kernels)
        self._attn_norm = _norm(at + "attn_norm", spec, weights)
        self._ffn_norm = _norm(at + "ffn_norm", spec, weights)
        self._heads = spec.heads
        self._scale = (spec.hidden // spec.heads) ** -0.5

    def __call__(self, x_TI: Tensor, lengths: list[int]) -> Tensor:
        mixed = [self._attend(part) for part in torch.split(self._qkv(x_TI), lengths)]
        x_TI = self._attn_norm(x_TI + self._o(torch.cat(mixed)))
        inner = blockwise(functional.gelu, self._up(x_TI))
        return self._ffn_norm(x_TI + self._down(inner))

    def _attend(self, qkv: Tensor) -> Tensor:
        """Every token of one text sees every other: (n, 3 I) -> (n, I)."""
        tokens = len(qkv)
        q_HnD, k_HnD, v_HnD = qkv.view(tokens, 3, self._heads, -1).permute(1, 2, 0, 3)
        shares_Hnn = torch.softmax(q_HnD @ k_HnD.transpose(1, 2) * self._scale, dim=-1)
        mixed_HnD = torch.matmul(shares_Hnn, v_HnD)
        return mixed_HnD.transpose(0, 1).reshape(tokens, -1)


class Encoder:
    """A loaded embedding model. ``embed`` may be called by one thread at a time."""

    def __init__(self, spec: EncoderSpec, weights: Weights, kernels: Kernels) -> None:
        self.spec = spec
        self.kv_groups: list[KVGroup] = []
        self._kernels = kernels
        (self._words,) = weights.matrices("embed")
        self._device = self._words.data.device
        (self._positions,) = weights.matrices("positions")
        (self._types,) = weights.matrices("token_types")
        self._norm = _norm("embed_norm", spec, weights)
        self._layers = [
            _EncoderLayer(spec, layer, weights, kernels) for layer in range(spec.layers)
        ]

    def embed(self, texts: list[list[int]]) -> Tensor:
        """Token ids of N texts, special tokens included -> (N, I), rows of length one.

        Raises ContextTooLong or InvalidRequest for a text that is too long or empty."""
        self._check(texts)
        if not texts:
            return torch.empty(0, self.spec.hidden)
        lengths = [len(text) for text in texts]
        flat = [token for text in texts for token in text]
        ids = torch.tensor(flat, dtype=torch.int32, device=self._device)
        places = [place for n in lengths for place in range(n)]
        positions = torch.tensor(places, dtype=torch.int32, device=self._device)
        embed = self._kernels.embed
        x = embed(ids, self._words) + embed(torch.zeros_like(ids), self._types)
        x = self._norm(x + embed(positions, self._positions))
        for layer in self._layers:
            x = layer(x, lengths)
        cls = self.spec.pooling == "cls"
        pooled = [part[0] if cls else part.mean(dim=0) for part in torch.split(x, lengths)]
        return torch.stack([functional.normalize(vector, dim=0) for vector in pooled])

    def _check(self, texts: list[list[int]]) -> None:
        spec = self.spec
        for text in texts:
            if not text:
                raise InvalidRequest("an empty text has no embedding", param="input")
            if len(text) > spec.context:
                raise ContextTooLong(
                    f"a text has {len(text)} tokens; the model takes {spec.context}", param="input"
                )
            if not 0 <= min(text) <= max(text) < spec.vocab:
                raise InvalidRequest(f"token ids must lie in 0 to {spec.vocab - 1}", param="input")


def _linear(name: str, weights: Weights, kernels: Kernels) -> Linear:
    return Linear(kernels, weights.matrices(name), weights.vector(f"{name}_bias"))


def _norm(name: str, spec: EncoderSpec, weights: Weights) -> _LayerNorm:
    return _LayerNorm(weights.vector(name), weights.vector(f"{name}_bias"), spec.norm_eps)
