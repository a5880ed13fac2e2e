"""What the server counts, for Prometheus. One name per thing; labels take few values, so that series stay few."""

from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Upper bounds of the latency buckets."""

REQUESTS = Counter("esr_requests", "Calls that have ended, by method and gRPC status.", ["method", "code"])
STAGE_SECONDS = Histogram(
    "esr_stage_seconds",
    "Seconds of each stage: handler (all of a call), queue (waiting for the compute thread), compute (a group of "
    "queries: embed, search, rank), feedback (writing the feedback log), rejected (until it was said).",
    ["stage"],
    buckets=SECONDS,
)
IN_FLIGHT = Gauge("esr_in_flight", "Queries that were admitted and not answered yet.", multiprocess_mode="livesum")
REJECTED = Counter("esr_rejected", "Queries that were turned away before any work, by reason.", ["reason"])
DEGRADED = Counter("esr_degraded", "Answers that are less than what the model could give, by reason.", ["reason"])
LOADS = Counter("esr_loads", "Versions that were loaded, by result.", ["result"])
ACTIVE_VERSION = Gauge("esr_active_version", "The version that answers.", multiprocess_mode="livemin")
ACCESS_LOG_LOST = Counter("esr_access_log_lost", "Lines of the access log that could not be written.")
