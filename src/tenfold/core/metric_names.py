"""The one table of metric names: what ``/metrics`` shows, with labels and the vLLM name of equals.

Plain data for documentation, dashboards and the exporter; knows nothing of Prometheus' library. A
vLLM name is given only where the meaning is the same; ``metrics.compat = "vllm"`` emits those too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MetricKind = Literal["counter", "gauge", "histogram"]

SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0, 2560.0),
)
WAITS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 1200.0)
"""Fewer than SECONDS: every client has them."""
TOKENS = tuple(float(2**power) for power in range(18))


@dataclass(frozen=True, slots=True)
class MetricName:
    """One metric. ``name`` is without the ``_total`` that counters get on the page."""

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    vllm: tuple[str, ...] = ()


# --- requests, as the server sees them --------------------------------------------------------
REQUESTS_FINISHED = MetricName(
    "tenfold_requests_finished",
    "counter",
    "Requests that ran, by how they ended (stop, length, tool_calls, abort).",
    ("model", "client", "finish"),
    vllm=("vllm:request_success",),
)
REQUESTS_FAILED = MetricName(
    "tenfold_requests_failed",
    "counter",
    "Requests answered with an error, by the error's code.",
    ("model", "client", "code"),
)
REQUESTS_REJECTED = MetricName(
    "tenfold_requests_rejected",
    "counter",
    "Requests refused because a queue was full (429).",
    ("model", "client"),
    vllm=("vllm:admission_rejections",),
)
REQUESTS_LIMITED = MetricName(
    "tenfold_requests_limited",
    "counter",
    "Requests refused because a client or its group was at a hard limit (429).",
    ("client", "limit"),
)
HTTP_RESPONSES = MetricName(
    "tenfold_http_responses",
    "counter",
    "HTTP responses, by route and status.",
    ("route", "status"),
)
PROMPT_TOKENS = MetricName(
    "tenfold_prompt_tokens",
    "counter",
    "Prompt tokens of finished requests, cached ones included.",
    ("model", "client"),
    vllm=("vllm:prompt_tokens", "vllm:prefix_cache_queries"),
)
CACHED_TOKENS = MetricName(
    "tenfold_cached_tokens",
    "counter",
    "Prompt tokens of finished requests that the prefix cache served.",
    ("model", "client"),
    vllm=("vllm:prompt_tokens_cached", "vllm:prefix_cache_hits"),
)
COMPLETION_TOKENS = MetricName(
    "tenfold_completion_tokens",
    "counter",
    "Tokens generated, counted as they leave the server.",
    ("model", "client"),
    vllm=("vllm:generation_tokens",),
)
TIME_TO_FIRST_TOKEN = MetricName(
    "tenfold_time_to_first_token_seconds",
    "histogram",
    "From the request's arrival to its first token.",
    ("model",),
    SECONDS,
    ("vllm:time_to_first_token_seconds",),
)
INTER_TOKEN = MetricName(
    "tenfold_inter_token_seconds",
    "histogram",
    "Time between two tokens of one choice.",
    ("model",),
    SECONDS,
    ("vllm:inter_token_latency_seconds",),
)
TIME_PER_OUTPUT_TOKEN = MetricName(
    "tenfold_time_per_output_token_seconds",
    "histogram",
    "Mean time a token after the first, one observation a request.",
    ("model",),
    SECONDS,
    ("vllm:request_time_per_output_token_seconds",),
)
REQUEST_SECONDS = MetricName(
    "tenfold_request_seconds",
    "histogram",
    "From the request's arrival to its last byte.",
    ("model",),
    SECONDS,
    ("vllm:e2e_request_latency_seconds",),
)
QUEUE_SECONDS = MetricName(
    "tenfold_queue_seconds",
    "histogram",
    "From the request's arrival to the start of its prefill.",
    ("model",),
    SECONDS,
    ("vllm:request_queue_time_seconds",),
)
CLIENT_QUEUE_SECONDS = MetricName(
    "tenfold_client_queue_seconds",
    "histogram",
    "From a request's arrival to the start of its prefill, by client.",
    ("client",),
    WAITS,
)
PREFILL_SECONDS = MetricName(
    "tenfold_prefill_seconds",
    "histogram",
    "From the start of prefill to the first token.",
    ("model",),
    SECONDS,
    ("vllm:request_prefill_time_seconds",),
)
DECODE_SECONDS = MetricName(
    "tenfold_decode_seconds",
    "histogram",
    "From the first token to the last.",
    ("model",),
    SECONDS,
    ("vllm:request_decode_time_seconds",),
)
REQUEST_PROMPT_TOKENS = MetricName(
    "tenfold_request_prompt_tokens",
    "histogram",
    "Prompt tokens of a request.",
    ("model",),
    TOKENS,
    ("vllm:request_prompt_tokens",),
)
REQUEST_COMPLETION_TOKENS = MetricName(
    "tenfold_request_completion_tokens",
    "histogram",
    "Generated tokens of a request.",
    ("model",),
    TOKENS,
    ("vllm:request_generation_tokens",),
)

# --- models, as their workers report them -----------------------------------------------------
REQUESTS_RUNNING = MetricName(
    "tenfold_requests_running",
    "gauge",
    "Requests in the running batch.",
    ("model", "device"),
    vllm=("vllm:num_requests_running",),
)
REQUESTS_WAITING = MetricName(
    "tenfold_requests_waiting",
    "gauge",
    "Requests in the queue.",
    ("model", "device"),
    vllm=("vllm:num_requests_waiting",),
)
WAITING_TOKENS = MetricName(
    "tenfold_waiting_tokens", "gauge", "Prompt tokens in the queue.", ("model", "device")
)
KV_USAGE = MetricName(
    "tenfold_kv_usage_ratio",
    "gauge",
    "Share of the model's KV blocks that live requests hold (0 to 1).",
    ("model",),
    vllm=("vllm:kv_cache_usage_perc",),
)
KV_BLOCKS = MetricName(
    "tenfold_kv_blocks",
    "gauge",
    "KV blocks by state: used by requests, cached for prefixes, total.",
    ("model", "device", "state"),
)
MODEL_PAGES = MetricName(
    "tenfold_model_pages",
    "gauge",
    "Physical pages a model holds, for weights and for KV; cached is a part of the KV, image what "
    "its weights take awake.",
    ("model", "device", "what"),
)
MODEL_STATE = MetricName(
    "tenfold_model_state", "gauge", "1 for the state the model is in.", ("model", "state")
)
MODEL_LIMIT_PAGES = MetricName(
    "tenfold_model_limit_pages",
    "gauge",
    "Most pages a model may hold; no value: as many as there are.",
    ("model", "device"),
)
MODEL_FLOOR_PAGES = MetricName(
    "tenfold_model_floor_pages",
    "gauge",
    "Pages for a model's KV that no other model takes.",
    ("model", "device"),
)
MODEL_RESIDENCY = MetricName(
    "tenfold_model_residency",
    "gauge",
    "1 for where the model's weights are: cold (on disk), host, waking, resident.",
    ("model", "device", "state"),
)
MODEL_IDLE_SECONDS = MetricName(
    "tenfold_model_idle_seconds", "gauge", "Since the model's last request.", ("model", "device")
)
MODEL_WAKES = MetricName(
    "tenfold_model_wakes",
    "counter",
    "How often a model's weights were brought back (activations).",
    ("model", "device"),
)
MODEL_SLEEPS = MetricName(
    "tenfold_model_sleeps",
    "counter",
    "How often a model's weights were given up (evictions).",
    ("model", "device"),
)
MODEL_WAKE_SECONDS = MetricName(
    "tenfold_model_wake_seconds", "gauge", "What the last wake took.", ("model", "device")
)
MODEL_MIGRATIONS = MetricName(
    "tenfold_model_migrations", "counter", "How often a model moved to another device.", ("model",)
)
STEPS = MetricName("tenfold_steps", "counter", "Steps run.", ("model", "device"))
STEP_SECONDS = MetricName(
    "tenfold_step_seconds", "counter", "Time spent in steps.", ("model", "device")
)
STEP_PART_SECONDS = MetricName(
    "tenfold_step_part_seconds",
    "counter",
    "Where steps' time went: deciding them, between operations, in operations, choosing tokens.",
    ("model", "device", "part"),
)
PREDICTED_STEP_SECONDS = MetricName(
    "tenfold_predicted_step_seconds",
    "counter",
    "Time the cost model predicted for the same steps.",
    ("model", "device"),
)
DRAFTED_TOKENS = MetricName(
    "tenfold_drafted_tokens",
    "counter",
    "Guessed tokens that steps verified.",
    ("model", "device"),
    vllm=("vllm:spec_decode_num_draft_tokens",),
)
ACCEPTED_TOKENS = MetricName(
    "tenfold_accepted_tokens",
    "counter",
    "Guessed tokens that turned out right and were kept.",
    ("model", "device"),
    vllm=("vllm:spec_decode_num_accepted_tokens",),
)
PREEMPTIONS = MetricName(
    "tenfold_preemptions",
    "counter",
    "Requests put back into the queue because pages ran out.",
    ("model", "device"),
    vllm=("vllm:num_preemptions",),
)

TTFT_REQUESTS = MetricName(
    "tenfold_ttft_target_requests",
    "counter",
    "Requests with a target for the time to the first token that are over: met, missed.",
    ("model", "device", "outcome"),
)
TPOT_REQUESTS = MetricName(
    "tenfold_tpot_target_requests",
    "counter",
    "Requests with a target for the time between tokens that are over: met, missed.",
    ("model", "device", "outcome"),
)
TARGETS_MET = MetricName(
    "tenfold_targets_met_requests",
    "counter",
    "Requests with a target that met all they had.",
    ("model", "device"),
)
REQUESTS_DEFERRED = MetricName(
    "tenfold_requests_deferred",
    "gauge",
    "Waiting requests that cannot meet their target any more, or would make too many others late.",
    ("model", "device"),
)

# --- clients, as the workers report them -------------------------------------------------------
CLIENT_SERVICE = MetricName(
    "tenfold_client_service",
    "counter",
    "Service computed for a client: weighted, priced tokens, without cached ones.",
    ("client",),
)
CLIENT_ASKED_SERVICE = MetricName(
    "tenfold_client_asked_service",
    "counter",
    "The same as the client sees it: every prompt token counts, cached ones too.",
    ("client",),
)
CLIENT_WAITING = MetricName(
    "tenfold_client_waiting", "gauge", "A client's requests that have not begun.", ("client",)
)
CLIENT_RUNNING = MetricName(
    "tenfold_client_running", "gauge", "A client's requests that have begun.", ("client",)
)
CLIENT_OLDEST_WAIT = MetricName(
    "tenfold_client_oldest_wait_seconds",
    "gauge",
    "How long the oldest of a client's waiting requests has waited.",
    ("client",),
)
CLIENT_CREDIT = MetricName(
    "tenfold_client_credit",
    "gauge",
    "A client's deficit counter; at or below 0 it waits for a refill. The lowest of those merged.",
    ("client", "device"),
)
CLIENT_DRIFT = MetricName(
    "tenfold_client_drift_ratio",
    "gauge",
    "How far a client's service is from its share, over the proven bound. The worst of those "
    "merged.",
    ("client", "device"),
)
REFILL_ROUNDS = MetricName(
    "tenfold_refill_rounds", "counter", "Refills of deficit counters.", ("device",)
)
JAIN_INDEX = MetricName(
    "tenfold_jain_index",
    "gauge",
    "Jain's index of service over shares, of the clients that waited all through the last minute.",
    ("device", "service"),
)

# --- devices and the server -------------------------------------------------------------------
DEVICE_PAGES = MetricName(
    "tenfold_device_pages",
    "gauge",
    "Physical pages of a device: capacity, mapped, reserved; scratch is a part of the mapped.",
    ("device", "what"),
)
DEVICE_VIRTUAL_BYTES = MetricName(
    "tenfold_device_virtual_bytes",
    "gauge",
    "Addresses that models have, mapped or not.",
    ("device",),
)
KV_FRAGMENTATION = MetricName(
    "tenfold_kv_fragmentation_ratio",
    "gauge",
    "Bytes mapped for keys and values over the bytes of those: 1 is none; no value without any.",
    ("device",),
)
PAGE_CALLS = MetricName(
    "tenfold_page_calls", "counter", "Pages mapped and unmapped.", ("device", "call")
)
PAGE_SECONDS = MetricName(
    "tenfold_page_seconds",
    "gauge",
    "Seconds to map or unmap a page: quantiles of the latest calls.",
    ("device", "call", "quantile"),
)
PRESSURE = MetricName(
    "tenfold_kv_pressure_ratio",
    "gauge",
    "Wished growth of keys and values, over the memory for them.",
    ("device",),
)
MEMORY_DECISIONS = MetricName(
    "tenfold_memory_decisions",
    "counter",
    "Decisions about memory, by kind: wake, sleep, limit, drain, and the rungs of the ladder.",
    ("device", "kind"),
)
DEVICE_PAGE_BYTES = MetricName(
    "tenfold_device_page_bytes", "gauge", "Bytes of one physical page.", ("device",)
)
DEVICE_RESIDENT_BYTES = MetricName(
    "tenfold_device_resident_bytes",
    "gauge",
    "Memory in use by the operating system's own count.",
    ("device",),
)
INTEGRITY_FAULTS = MetricName(
    "tenfold_integrity_faults", "gauge", "Broken invariants found when idle.", ("device",)
)
MESSAGE_SECONDS = MetricName(
    "tenfold_message_seconds", "counter", "Time a worker spent sending its events.", ("device",)
)
SERVER_CPU_SECONDS = MetricName(
    "tenfold_server_cpu_seconds", "counter", "Processor time of the server process (not workers)."
)
READY = MetricName("tenfold_ready", "gauge", "1 while the server takes requests.")

TABLE: tuple[MetricName, ...] = tuple(
    entry for entry in list(globals().values()) if isinstance(entry, MetricName)
)
"""Every metric, in the order of this file."""
