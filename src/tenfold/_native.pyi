"""The compiled extension (native/src/module.cpp). Addresses and sizes in, no checks of types."""

def packed_bytes(kind: int, rows: int, cols: int) -> int: ...
def best_arch() -> str: ...

class Tape:
    def __init__(self) -> None: ...
    def __len__(self) -> int: ...

class Experts:
    def __init__(self) -> None: ...
    def add(self, kind: int, weight: int, weight_bytes: int, rows: int, cols: int) -> None: ...

class Runtime:
    def __init__(self, threads: int, arch: str, ints: bool) -> None: ...
    @property
    def threads(self) -> int: ...
    @property
    def arch(self) -> str: ...
    def pack(self, kind: int, rows: int, cols: int, raw: int, out: int) -> None: ...
    def linear(
        self,
        kind: int,
        weight: int,
        weight_bytes: int,
        rows: int,
        cols: int,
        x: int,
        tokens: int,
        x_row: int,
        bias: int,
        y: int,
        y_row: int,
    ) -> None: ...
    def embed(
        self,
        kind: int,
        weight: int,
        weight_bytes: int,
        rows: int,
        cols: int,
        ids: int,
        tokens: int,
        scale: float,
        y: int,
    ) -> None: ...
    def record(self, tape: Tape) -> None: ...
    def stop(self) -> None: ...
    def replay(self, tape: Tape) -> None: ...
    @property
    def seconds(self) -> float: ...
    def add_rms_norm(
        self,
        x: int,
        delta: int,
        delta_weight: int,
        weight: int,
        tokens: int,
        n: int,
        eps: float,
        y: int,
    ) -> None: ...
    def largest(self, x: int, rows: int, n: int, ids: int, values: int) -> None: ...
    def gather(self, x: int, rows: int, count: int, total: int, n: int, y: int) -> None: ...
    def softcap(self, x: int, count: int, cap: float) -> None: ...
    def slots(
        self,
        table: int,
        sequences: int,
        columns: int,
        table_stride: int,
        tokens: int,
        block_tokens: int,
        starts: int,
        context: int,
        out: int,
    ) -> None: ...
    def rms_norm(
        self,
        x: int,
        tokens: int,
        heads: int,
        n: int,
        token_stride: int,
        head_stride: int,
        weight: int,
        eps: float,
        y: int,
    ) -> None: ...
    def gated(self, x: int, tokens: int, x_row: int, half: int, gelu: bool, y: int) -> None: ...
    def rope(
        self,
        x: int,
        tokens: int,
        heads: int,
        n: int,
        token_stride: int,
        head_stride: int,
        positions: int,
        cos: int,
        sin: int,
        table: int,
    ) -> None: ...
    def choose(
        self,
        logits: int,
        tokens: int,
        experts: int,
        top_k: int,
        norm: bool,
        weights: int,
        chosen: int,
    ) -> None: ...
    def route(self, chosen: int, pairs: int, experts: int, order: int, starts: int) -> None: ...
    def grouped(
        self,
        matrices: Experts,
        chosen: int,
        pairs: int,
        order: int,
        starts: int,
        repeat: int,
        x: int,
        x_row: int,
        y: int,
        y_row: int,
        room: int,
        x_rows: int,
        y_rows: int,
    ) -> None: ...
    def mix(
        self,
        out: int,
        weights: int,
        tokens: int,
        top_k: int,
        n: int,
        shared: int,
        gate: int,
        y: int,
    ) -> None: ...
    def store_kv(
        self,
        k: int,
        k_token: int,
        k_head: int,
        v: int,
        v_token: int,
        v_head: int,
        tokens: int,
        kv_type: int,
        cache: int,
        blocks: int,
        kv_heads: int,
        block_tokens: int,
        head_dim: int,
        block_stride: int,
        layer_stride: int,
        kv_stride: int,
        head_stride: int,
        token_stride: int,
        layer: int,
        slots: int,
    ) -> None: ...
    def attention(
        self,
        q: int,
        tokens: int,
        heads: int,
        head_dim: int,
        q_token: int,
        q_head: int,
        kv_type: int,
        cache: int,
        blocks: int,
        kv_heads: int,
        block_tokens: int,
        block_stride: int,
        layer_stride: int,
        kv_stride: int,
        head_stride: int,
        token_stride: int,
        layer: int,
        table: int,
        sequences: int,
        columns: int,
        table_stride: int,
        starts: int,
        context: int,
        scale: float,
        window: int,
        softcap: float,
        sinks: int,
        out: int,
        lse: int,
    ) -> None: ...
