"""Which worker gets a call: a routing policy, kept up to date with workers, caches and calls.

Everything that leads from the fleet's words (workers, engine requests, updates) to the policy's
(names, hashes, tokens) is here. Knows neither how requests travel nor what becomes of answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from tenfold.core.clock import Clock
from tenfold.core.errors import ConfigError
from tenfold.core.messages import AskPrefixes, Command, Event, ModelDown, PrefixUpdate, WorkerUp
from tenfold.core.settings import RoutingSettings, Share
from tenfold.core.types import EngineRequest
from tenfold.fleet.cache_feed import CacheFeed
from tenfold.kvcache.hashing import block_hashes
from tenfold.scheduling.routing.base import Routed
from tenfold.scheduling.routing.registry import routing_policies


class Routing:
    """The router of one service. With one worker there is nothing to choose, and nothing is asked,
    hashed or told."""

    def __init__(
        self,
        settings: RoutingSettings,
        block_tokens: Iterable[int],
        clock: Clock,
        send: Mapping[str, Callable[[Command], None]],
    ) -> None:
        """``block_tokens``: of every worker; ``send``: to each. Raises ConfigError where blocks
        differ, because prompts are named by them, and for a policy that is not there."""
        sizes = list(block_tokens)
        self.policy = routing_policies.get(settings.policy)(settings)
        self._alone = len(sizes) < 2
        if len(set(sizes)) > 1:
            raise ConfigError(
                f"workers have blocks of {', '.join(map(str, sizes))} tokens; give all of them "
                "the same device.block_tokens"
            )
        self._block_tokens = sizes[0] if sizes else 16
        self._clock = clock
        self._weighted: set[str] = set()
        self._feed = CacheFeed(self.policy, lambda name: send[name](AskPrefixes()), clock)

    # --- workers --------------------------------------------------------------------------------
    def heard(self, worker: str, event: Event) -> None:
        """What a worker said of itself and its caches; other events are ignored."""
        if self._alone:
            return
        match event:
            case WorkerUp():
                self.policy.join(worker)
                if self.policy.follows_caches:
                    self._feed.begin(worker)
            case PrefixUpdate():
                self._feed.take(worker, event)
            case ModelDown(model):
                self._feed.forget(worker, model)
                self.policy.cleared(worker, model)

    def lost(self, worker: str) -> None:
        """The worker died, with all it had."""
        self._feed.forget(worker)
        self.policy.leave(worker)

    # --- clients --------------------------------------------------------------------------------
    def set_shares(self, shares: Iterable[Share]) -> None:
        """The tree of shares. At a router each client has its weight, whatever its group: what
        groups leave each other is settled where there is work, at the workers."""
        weights = {share.name: share.weight for share in shares if not share.is_group}
        for client in self._weighted - weights.keys():
            self.policy.set_weight(client, 1.0)
        for client, weight in weights.items():
            self.policy.set_weight(client, weight)
        self._weighted = set(weights)

    # --- calls ----------------------------------------------------------------------------------
    def choose(self, request: EngineRequest, among: frozenset[str]) -> str:
        """The worker for a call, of which this is the first request. It ends by ``ended``."""
        if self._alone:
            return next(iter(among))
        hashes = block_hashes(request.prompt, self._block_tokens, request.namespace)
        routed = Routed(
            id=request.id,
            client=request.client,
            model=request.model,
            prompt_tokens=len(request.prompt),
            hashes=hashes,
            output_limit=request.sampling.max_tokens or 0,
            block_tokens=self._block_tokens,
        )
        return self.policy.choose(routed, among, self._clock.now())

    def ended(self, id: str, output_tokens: int | None) -> None:
        """A call's request is over, after so many tokens; None: it never ran."""
        if self._alone:
            return
        if output_tokens is None:
            self.policy.dropped(id)
        else:
            self.policy.finished(id, output_tokens, self._clock.now())
