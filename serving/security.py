"""Who may call: TLS, mutual TLS and bearer tokens. Health checks need a connection, but no token."""

import hmac
import ssl
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health

from serving.server_options import OptionError, ServerOptions
from serving.telemetry import Continuation, Handler

SHORTEST_TOKEN = 16
"""Characters; a shorter token could be guessed."""

EXEMPT = f"/{health.SERVICE_NAME}/"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_exposure(options: ServerOptions) -> str:
    """What an operator should know before the address opens; empty if nothing.

    Raises:
        OptionError: the admin service would be open to other machines without a token.
    """
    if options.admin_port is not None and not is_loopback(options.admin_host) and options.admin_token_file is None:
        raise OptionError(f"admin-host ({options.admin_host}) is open to other machines: it needs admin-token-file")
    if is_loopback(options.host):
        return ""
    missing = [
        what
        for what, given in (("TLS", options.tls_certificate), ("a token", options.token_file or options.tls_client_ca))
        if given is None
    ]
    return f"host ({options.host}) is open to other machines without {' and '.join(missing)}" if missing else ""


def credentials(options: ServerOptions) -> grpc.ServerCredentials | None:
    """The TLS that the options ask for; None is none.

    Raises:
        OptionError: a file cannot be read, holds no PEM, or the key is not the certificate's.
    """
    if options.tls_certificate is None or options.tls_key is None:
        given = options.tls_certificate or options.tls_key or options.tls_client_ca
        if given is not None:
            raise OptionError(f"TLS ({given}) needs both tls-certificate and tls-key")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # gRPC would take what does not fit and fail every handshake
    try:
        context.load_cert_chain(options.tls_certificate, options.tls_key, password=_no_password)
        if options.tls_client_ca is not None:
            context.load_verify_locations(options.tls_client_ca)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        paths = (options.tls_certificate, options.tls_key, options.tls_client_ca)
        files = ", ".join(str(path) for path in paths if path)
        raise OptionError(f"TLS ({files}) cannot be used: {getattr(error, 'strerror', None) or error}") from error
    return grpc.ssl_server_credentials(
        [(options.tls_key.read_bytes(), options.tls_certificate.read_bytes())],
        root_certificates=options.tls_client_ca.read_bytes() if options.tls_client_ca else None,
        require_client_auth=options.tls_client_ca is not None,
    )


def _no_password() -> NoReturn:
    raise ValueError("the key is encrypted")


def read_token(path: Path | None) -> str | None:
    """The token that a file holds; None without a file.

    Raises:
        OptionError: the file cannot be read, or what it holds could be guessed or not be sent.
    """
    if path is None:
        return None
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"token file ({path}) cannot be read: {getattr(error, 'strerror', 'not ASCII')}") from error
    if len(token) < SHORTEST_TOKEN or not token.isprintable() or " " in token:
        raise OptionError(f"token file ({path}) must hold one word of at least {SHORTEST_TOKEN} characters")
    return token


class BearerToken(grpc.aio.ServerInterceptor):
    """Lets calls through that carry the token; others are UNAUTHENTICATED before their message is parsed.

    A method that there is not is UNIMPLEMENTED for everybody.
    """

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()
        self._refusal: Handler = grpc.unary_unary_rpc_method_handler(_refuse)

    async def intercept_service(
        self,
        continuation: Continuation,
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Compare in a time that does not depend on where the token differs."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(EXEMPT):
            return handler  # None: a refusal would make a method of whatever name a caller invents
        given = [value for name, value in handler_call_details.invocation_metadata if name == "authorization"]
        if len(given) != 1 or not hmac.compare_digest(as_bytes(given[0]), self._expected):
            return self._refusal
        return handler


def as_bytes(value: str | bytes) -> bytes:
    """A metadata value as it came."""
    return value if isinstance(value, bytes) else value.encode()


async def _refuse(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "metadata must hold authorization: Bearer TOKEN")
