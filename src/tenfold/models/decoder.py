"""The decoder-only transformer: one network for every family, shaped by its ``ModelSpec``.

Shape letters: T new tokens, I hidden size, H query heads, K key/value heads, D head dim, S
sequences, B blocks, L rows whose logits are wanted. All heavy work goes through the kernel table.
Knows nothing of requests, of files, or of which kernels run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from torch import Tensor

from tenfold.core.errors import ConfigError
from tenfold.core.types import KVDtype
from tenfold.kernels.base import GroupedKernels, Kernels, MixtureKernels, WideLogits
from tenfold.models.batch import ForwardBatch, Rank
from tenfold.models.footprint import Footprint
from tenfold.models.layers import GatedMlp, Linear
from tenfold.models.moe import Mixture
from tenfold.models.moe_grouped import GroupedExperts
from tenfold.models.packing import Weights
from tenfold.models.rope import RopeTable
from tenfold.models.spec import ModelSpec


@dataclass(slots=True)
class GroupStep:
    """What the layers of one KV group share during one forward pass."""

    cache: Tensor
    table_SB: Tensor
    slots_T: Tensor
    cos_PD: Tensor
    sin_PD: Tensor


@dataclass(slots=True)
class Step:
    """What every layer needs to know of the batch."""

    positions_T: Tensor
    starts_S1: Tensor
    context_S: Tensor
    groups: list[GroupStep]


class Attention:
    """Grouped-query attention of one layer over the paged cache: (T, I) -> (T, I).

    ``group`` and ``index`` say where the layer's keys and values live.
    """

    def __init__(
        self,
        spec: ModelSpec,
        layer: int,
        weights: Weights,
        kernels: Kernels,
        group: int,
        index: int,
    ) -> None:
        at = f"layers.{layer}."
        bias = (
            weights.vector(f"{at}q_bias", f"{at}k_bias", f"{at}v_bias") if spec.qkv_bias else None
        )
        self._qkv = Linear(kernels, weights.matrices(f"{at}q", f"{at}k", f"{at}v"), bias)
        o_bias = weights.vector(f"{at}o_bias") if spec.o_bias else None
        self._o = Linear(kernels, weights.matrices(f"{at}o"), o_bias)
        self._q_norm = weights.vector(f"{at}q_norm") if spec.qk_norm else None
        self._k_norm = weights.vector(f"{at}k_norm") if spec.qk_norm else None
        self._kernels = kernels
        self._group = group
        self._index = index
        self._heads = spec.heads
        self._kv_heads = spec.kv_heads
        self._head_dim = spec.head_dim
        self._eps = spec.norm_eps
        self._scale = spec.attention_scale
        self._window = spec.window if spec.attention[layer] == "sliding" else None
        self._softcap = spec.attention_softcap

    def __call__(self, x_TI: Tensor, step: Step) -> Tensor:
        kernels, group = self._kernels, step.groups[self._group]
        heads, kv_heads = self._heads, self._kv_heads
        tokens = x_TI.shape[0]
        qkv = self._qkv(x_TI).view(tokens, heads + 2 * kv_heads, self._head_dim)
        v_TKD = qkv[:, heads + kv_heads :]
        if self._q_norm is not None and self._k_norm is not None:
            q_THD = kernels.rms_norm(qkv[:, :heads], self._q_norm, self._eps)
            k_TKD = kernels.rms_norm(qkv[:, heads : heads + kv_heads], self._k_norm, self._eps)
            kernels.rope(q_THD, step.positions_T, group.cos_PD, group.sin_PD)
            kernels.rope(k_TKD, step.positions_T, group.cos_PD, group.sin_PD)
        else:
            both = qkv[:, : heads + kv_heads]
            kernels.rope(both, step.positions_T, group.cos_PD, group.sin_PD)
            q_THD, k_TKD = both[:, :heads], both[:, heads:]
        kernels.store_kv(k_TKD, v_TKD, group.cache, self._index, group.slots_T)
        out_THD = kernels.paged_attention(
            q_THD,
            group.cache,
            self._index,
            group.table_SB,
            step.starts_S1,
            step.context_S,
            scale=self._scale,
            window=self._window,
            softcap=self._softcap,
        )
        return self._o(out_THD.view(tokens, heads * self._head_dim))


class Layer:
    """Attention and MLP of one layer, and the norms before and (sandwich norms) after each.

    What a part computes is added to the residual by the norm that follows it, in one operation;
    ``feed`` therefore takes the norm that comes after this layer.
    """

    def __init__(
        self,
        spec: ModelSpec,
        layer: int,
        weights: Weights,
        kernels: Kernels,
        group: int,
        index: int,
    ) -> None:
        at = f"layers.{layer}."
        self._kernels = kernels
        self._eps = spec.norm_eps
        self.norm = weights.vector(f"{at}attn_norm")
        self._ffn_norm = weights.vector(f"{at}ffn_norm")
        sandwich = spec.sandwich_norms
        self._post_attn_norm = weights.vector(f"{at}post_attn_norm") if sandwich else None
        self._post_ffn_norm = weights.vector(f"{at}post_ffn_norm") if sandwich else None
        self.attend = Attention(spec, layer, weights, kernels, group, index)
        build = _mixture if layer in spec.moe_layers else _dense
        self._mlp = build(spec, at, weights, kernels)

    def feed(self, x_TI: Tensor, attended_TI: Tensor, next_norm_I: Tensor, out_TI: Tensor) -> None:
        """Add ``attended``, then the MLP's output, to ``x`` in place; its next norm to ``out``."""
        add, eps = self._kernels.add_rms_norm, self._eps
        normed = add(x_TI, attended_TI, self._ffn_norm, eps, delta_weight_I=self._post_attn_norm)
        fed = self._mlp(normed)
        add(x_TI, fed, next_norm_I, eps, delta_weight_I=self._post_ffn_norm, out_TI=out_TI)


class Decoder:
    """A loaded model. ``forward`` may be called by one thread at a time.

    ``rank`` says which part of the model this process holds; only a group of one runs so far.
    ``recordable``: a pass consists of the same operations whatever the data (a mixture routes
    tokens by their values, and needs grouped kernels for that), so it may be written on a ``Tape``.
    ``scratch_bytes``: what a pass over so many tokens and rows of logits takes from a scope.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        kernels: Kernels,
        rank: Rank | None = None,
        kv_dtype: KVDtype = "f32",
    ) -> None:
        self.spec = spec
        self.rank = rank or Rank()
        if self.rank.size != 1:
            raise ConfigError(
                f"a model over {self.rank.size} ranks cannot run yet; give the instance one device"
            )
        self.kv_groups = spec.kv_groups(self.rank.size, kv_dtype)
        if self.kv_groups and kv_dtype not in kernels.kv_dtypes:
            raise ConfigError(
                f"{kernels.describe()} cannot keep keys and values as {kv_dtype}; set "
                f"device.kv_dtype to one of {', '.join(kernels.kv_dtypes)}"
            )
        self.kernels = kernels
        self.scratch_bytes = Footprint(spec)
        self.recordable = not spec.moe_layers or isinstance(kernels, GroupedKernels)
        (self._embed,) = weights.matrices("embed")
        self._final_norm = weights.vector("final_norm")
        (head,) = weights.matrices("embed" if spec.tied else "head")
        self._head: Callable[[Tensor], Tensor] = Linear(kernels, [head])
        if isinstance(kernels, WideLogits):
            self._head = partial(kernels.logits, weight=head)
        place = {
            layer: (group, index)
            for group, own in enumerate(self.kv_groups)
            for index, layer in enumerate(own.layers)
        }
        self._layers = [
            Layer(spec, layer, weights, kernels, *place[layer]) for layer in range(spec.layers)
        ]
        self._ropes = [self._rope_of(group.name) for group in self.kv_groups]

    def _rope_of(self, group: str) -> RopeTable:
        spec = self.spec
        rope = spec.rope_sliding if group == "sliding" and spec.rope_sliding else spec.rope
        return RopeTable(rope, spec.head_dim, spec.context, self._embed.data.device)

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Logits of the wanted rows -> (L, vocabulary), float32; writes keys and values.

        A token's logits do not depend on the other sequences, nor on how its sequence was cut into
        steps (in exact mode)."""
        spec, kernels = self.spec, self.kernels
        scope, layers = kernels.scope, self._layers
        x = kernels.embed(batch.tokens_T, self._embed, spec.embedding_scale)
        normed = kernels.rms_norm(x, layers[0].norm, spec.norm_eps)
        step = self._step(batch)
        for layer, following in pairwise(layers):
            with scope():
                layer.feed(x, layer.attend(normed, step), following.norm, normed)
        last, rows = layers[-1], batch.logit_rows_L
        attended = last.attend(normed, step)
        if rows is not None:  # only these rows need what follows the last attention
            if not len(rows):
                return x.new_empty(0, spec.vocab)
            x, attended = kernels.gather(x, rows), kernels.gather(attended, rows)
            normed = kernels.empty(*x.shape)
        with scope():
            last.feed(x, attended, self._final_norm, normed)
        logits = self._head(normed)
        if spec.logit_softcap is not None:
            kernels.softcap(logits, spec.logit_softcap)
        return logits

    def prepare(self, positions: int) -> None:
        """Make the rotation tables long enough; recorded steps must not outgrow them."""
        for rope in self._ropes:
            rope.ensure(positions - 1)

    def _step(self, batch: ForwardBatch) -> Step:
        tokens = len(batch.tokens_T)
        groups = []
        for cache, table, rope in zip(batch.kv, batch.tables, self._ropes, strict=True):
            block_tokens = cache.shape[4]
            rope.ensure(table.shape[1] * block_tokens - 1)
            slots = self.kernels.slots(
                table, batch.starts_S1, batch.context_S, tokens, block_tokens
            )
            groups.append(GroupStep(cache, table, slots, rope.cos, rope.sin))
        return Step(batch.positions_T, batch.starts_S1, batch.context_S, groups)


Mlp = Callable[[Tensor], Tensor]


def _gated(spec: ModelSpec, prefix: str, weights: Weights, kernels: Kernels) -> GatedMlp:
    gate_up = Linear(kernels, weights.matrices(f"{prefix}gate", f"{prefix}up"))
    down = Linear(kernels, weights.matrices(f"{prefix}down"))
    return GatedMlp(kernels, gate_up, down, spec.activation)


def _dense(spec: ModelSpec, at: str, weights: Weights, kernels: Kernels) -> Mlp:
    return _gated(spec, at, weights, kernels)


def _mixture(spec: ModelSpec, at: str, weights: Weights, kernels: Kernels) -> Mlp:
    moe = spec.moe
    if moe is None:
        raise ValueError("a mixture layer needs spec.moe")
    experts: list[Mlp] = [
        _gated(spec, f"{at}experts.{expert}.", weights, kernels) for expert in range(moe.experts)
    ]
    router = Linear(kernels, weights.matrices(f"{at}router"))
    shared = _gated(spec, f"{at}shared.", weights, kernels) if moe.shared_ffn else None
    gate = Linear(kernels, weights.matrices(f"{at}shared_gate")) if moe.shared_ffn else None
    run = None
    if isinstance(kernels, GroupedKernels):
        names = [f"{at}experts.{expert}." for expert in range(moe.experts)]
        run = GroupedExperts(kernels, kernels, weights, names, spec.activation)
    own = kernels if isinstance(kernels, MixtureKernels) else None
    return Mixture(router, experts, moe.top_k, moe.norm_topk, shared, gate, run, own)
