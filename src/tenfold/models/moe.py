"""A mixture of experts: route each token, run each expert once over its tokens, add up.

Shape letters: T tokens, I hidden size, k experts per token, E experts. The sum over a token's
experts is taken in the order of its own routing weights, so the result does not depend on the other
tokens of the step. Knows nothing of where the experts' weights live.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tenfold.kernels.base import MixtureKernels
from tenfold.models.elementwise import sigmoid

Mlp = Callable[[Tensor], Tensor]


class Mixture:
    """Implements ``Mlp``: (T, I) -> (T, I).

    ``router`` and ``shared_gate`` are linear layers; ``shared``, where present, sees every token.
    ``run``, where given, computes what ``_run_experts`` does, all experts together; ``kernels``,
    where given, does what is left, so that no operation here is torch's.
    """

    def __init__(
        self,
        router: Mlp,
        experts: list[Mlp],
        top_k: int,
        norm_topk: bool,
        shared: Mlp | None = None,
        shared_gate: Mlp | None = None,
        run: Callable[[Tensor, Tensor], Tensor] | None = None,
        kernels: MixtureKernels | None = None,
    ) -> None:
        self._router = router
        self._experts = experts
        self._top_k = top_k
        self._norm_topk = norm_topk
        self._shared = shared
        self._shared_gate = shared_gate
        self._run = run or self._run_experts
        self._kernels = kernels

    def __call__(self, x_TI: Tensor) -> Tensor:
        if self._kernels is not None:
            return self._native(x_TI, self._kernels)
        weights_Tk, experts_Tk = self.route(x_TI)
        out_TkI = self._run(x_TI, experts_Tk).view(*experts_Tk.shape, -1)
        total_TI = out_TkI[:, 0] * weights_Tk[:, :1]
        for slot in range(1, self._top_k):
            total_TI += out_TkI[:, slot] * weights_Tk[:, slot : slot + 1]
        if self._shared is not None and self._shared_gate is not None:
            total_TI += sigmoid(self._shared_gate(x_TI)) * self._shared(x_TI)
        return total_TI

    def _native(self, x_TI: Tensor, kernels: MixtureKernels) -> Tensor:
        weights_Tk, experts_Tk = kernels.choose(self._router(x_TI), self._top_k, self._norm_topk)
        out = self._run(x_TI, experts_Tk)
        if self._shared is None or self._shared_gate is None:
            return kernels.mix(out, weights_Tk)
        return kernels.mix(out, weights_Tk, self._shared(x_TI), self._shared_gate(x_TI))

    def route(self, x_TI: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and numbers of each token's experts, heaviest first -> (T, k), (T, k)."""
        shares_TE = torch.softmax(self._router(x_TI).float(), dim=-1)
        weights_Tk, experts_Tk = torch.topk(shares_TE, self._top_k, dim=-1)
        if self._norm_topk:
            total_T = weights_Tk[:, 0].clone()
            for slot in range(1, self._top_k):  # in order: a library sum may pick another
                total_T += weights_Tk[:, slot]
            weights_Tk = weights_Tk / total_T[:, None]
        return weights_Tk, experts_Tk

    def _run_experts(self, x_TI: Tensor, experts_Tk: Tensor) -> Tensor:
        """Every (token, slot)'s expert output -> (T * k, I)."""
        chosen = experts_Tk.reshape(-1)
        pairs = torch.argsort(chosen, stable=True)
        counts = torch.bincount(chosen, minlength=len(self._experts)).tolist()
        out = x_TI.new_empty(len(chosen), x_TI.shape[1])
        start = 0
        for expert, count in zip(self._experts, counts, strict=True):
            if count:
                mine = pairs[start : start + count]
                out[mine] = expert(x_TI[mine // self._top_k])
                start += count
        return out
