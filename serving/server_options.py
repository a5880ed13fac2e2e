"""What a server can be told: the options of `python -m serving serve`, as a worker receives them too."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from serving.contexts import UnknownContext
from serving.errors import ServingError

PORT = 65535


class OptionError(ServingError):
    """Options that cannot be served with; the message quotes the value and the rule."""


class ServerOptions(BaseModel):
    """Where a server listens, whom it lets in, what it tells, and how it ends."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    root: Path
    """Bundle root; the server follows its highest version and switches without losing a request."""

    host: str = "127.0.0.1"
    """Address to listen on; beyond this machine, give TLS and a token too."""
    port: NonNegativeInt = Field(default=50051, le=PORT)
    """Port to listen on; 0 takes a free one."""
    workers: PositiveInt = Field(default=1, le=256)
    """Processes that answer on the one port, each on one core; one that dies is started again."""

    pin: NonNegativeInt = 0
    """Serve this version and stay on it; 0 follows the highest."""
    choice_file: Path | None = None
    """File that keeps what the admin service chose (activate, roll back), so that it outlives a restart; without it the
    highest version is followed again."""
    poll_seconds: PositiveFloat = Field(default=1.0, le=3600)
    """How often to look under the root for a new version."""
    wait_for_bundle: bool = False
    """Start without a bundle, answer UNAVAILABLE and not ready, and serve as soon as one is published."""

    tls_certificate: Path | None = None
    """PEM file of the server's certificate and its chain; with the key it turns TLS on, for the admin port too."""
    tls_key: Path | None = None
    """PEM file of the certificate's private key."""
    tls_client_ca: Path | None = None
    """PEM file of the authorities that clients' certificates must come from: mutual TLS."""
    token_file: Path | None = None
    """File with the token that every call must carry as `authorization: Bearer TOKEN`; health checks are exempt."""

    admin_host: str = "127.0.0.1"
    """Address for esr.v1.AdminService; beyond this machine it needs a token."""
    admin_port: int | None = Field(default=None, ge=0, le=PORT)
    """Port for esr.v1.AdminService (list, load, activate, roll back versions); off unless given, 0 takes a free one."""
    admin_token_file: Path | None = None
    """File with the token that admin calls must carry; another one than the clients'."""

    metrics_host: str = "127.0.0.1"
    """Address for Prometheus."""
    metrics_port: int | None = Field(default=None, ge=0, le=PORT)
    """Port where Prometheus scrapes http://HOST:PORT/metrics; off unless given, 0 takes a free one."""
    access_log: str = ""
    """File to append one line of JSON per call to; - is stdout; empty: none."""
    otel: bool = False
    """Send a span of each call to an OpenTelemetry collector, as the OTEL_* variables say; pip install '.[otel]'."""
    reflection: bool = False
    """Describe the services to whoever asks, for tools such as grpcurl."""

    unknown_context: UnknownContext = "not-found"
    """What a context that the model does not know gets: NOT_FOUND, or the answer for the average context, marked so."""
    feedback_log: str = ""
    """Where RecordFeedback writes: a file for SQLite, or postgresql://USER@HOST/DATABASE; empty: it is refused."""

    max_in_flight: PositiveInt = 1024
    """Queries that may wait or be computed at once, in each process; whoever comes then is told when to try again."""
    max_batch: PositiveInt = 1024
    """Most requests of a BatchRetrieve; no more than may be in flight."""
    no_op: NonNegativeInt = 0
    """Also answer esr.v1.LoadTest/NoOp with a reply of this many candidates, without any work; for load tests."""
    max_message_bytes: int = Field(default=4 << 20, ge=1 << 10, le=1 << 30)
    """Largest message to read; a larger one is answered RESOURCE_EXHAUSTED unread."""
    drain_delay: NonNegativeFloat = Field(default=0.0, le=3600)
    """Seconds between saying "not ready" and refusing calls at SIGTERM, for load balancers to notice."""
    drain_seconds: NonNegativeFloat = Field(default=30.0, le=3600)
    """Seconds that accepted calls then have to finish."""
