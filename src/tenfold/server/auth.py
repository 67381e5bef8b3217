"""Who is calling, and what they may do.

A key decides where there are clients; a header only names one where there are none. Knows nothing
of requests' bodies.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from ipaddress import IPv6Address, ip_address
from typing import Literal, NamedTuple

from tenfold.core.errors import Forbidden, InvalidRequest, Unauthorized
from tenfold.core.keys import hash_key
from tenfold.core.tenancy import ADMIN, ANONYMOUS
from tenfold.fleet.tenants import Tenants
from tenfold.server.settings import ServerSettings

Access = Literal["public", "client", "admin"]

_PUBLIC = frozenset({"/", "/health", "/ready", "/version", "/openapi.json"})
_CLIENT_NAME = re.compile(r"[\x21-\x7e]{1,64}")
_PROXY_HEADERS = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


class Caller(NamedTuple):
    """``fixed``: the name comes from a key or a header, so the body's ``user`` does not count."""

    name: str
    fixed: bool
    admin: bool = False


def access_of(path: str, metrics_public: bool = True) -> Access:
    """What a path asks of its caller. Whatever is not listed as public needs a key."""
    if path == "/v1/admin" or path.startswith("/v1/admin/"):
        return "admin"
    if path in _PUBLIC or path.startswith("/ui/"):
        return "public"
    return "public" if path == "/metrics" and metrics_public else "client"


class Authenticator:
    """Turns headers and peer into a Caller, or refuses."""

    def __init__(self, settings: ServerSettings, tenants: Tenants) -> None:
        self._settings = settings
        self._tenants = tenants

    def caller(self, path: str, headers: Mapping[str, str], peer: str | None) -> Caller:
        """Raises Unauthorized (no key, or an unknown one), Forbidden, or InvalidRequest.

        ``headers`` has lower-case names; ``peer`` is the address of the connection's other end.
        """
        access = access_of(path, self._settings.metrics_public)
        if access == "public":
            return Caller(ANONYMOUS, fixed=False)
        known = self._known(_bearer(headers))
        if access == "admin":
            return self._admin(known, headers, peer)
        if not self._tenants.keys_required:
            # Without client keys any bearer goes: OpenAI's SDKs insist on sending one.
            return known if known and known.admin else _self_named(headers)
        if known is None:
            raise Unauthorized(
                "send a known API key as 'Authorization: Bearer <key>'", param="Authorization"
            )
        return known

    def _admin(self, known: Caller | None, headers: Mapping[str, str], peer: str | None) -> Caller:
        if known and known.admin:
            return known
        if known:
            raise Forbidden(f"the key of client {known.name!r} may not use /v1/admin")
        if self._settings.admin_key_sha256 is not None:
            raise Unauthorized("/v1/admin needs the admin key", param="Authorization")
        if self._tenants.keys_required and _bearer(headers):
            raise Unauthorized("this API key is not known", param="Authorization")
        if not _is_local(headers, peer):
            raise Forbidden(
                "no admin key is configured, so /v1/admin answers only programs on this machine: "
                "no other hosts, no proxies, no browser pages"
            )
        return Caller(ADMIN, fixed=True, admin=True)

    def _known(self, key: str | None) -> Caller | None:
        """The key's owner, found in constant time. Raises Forbidden for a disabled client."""
        if key is None:
            return None
        client = self._tenants.owner(key)
        admin = self._settings.admin_key_sha256
        if admin is not None and hmac.compare_digest(admin.lower(), hash_key(key)):
            return Caller(ADMIN, fixed=True, admin=True)
        if client is not None and client.disabled:
            raise Forbidden(
                f"the client {client.name!r} is disabled here; ask whoever runs this server"
            )
        return Caller(client.name, fixed=True) if client is not None else None


def _bearer(headers: Mapping[str, str]) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None


def _self_named(headers: Mapping[str, str]) -> Caller:
    """A client without a key, by the name it gives itself."""
    name = headers.get("x-client-id")
    if name is None:
        return Caller(ANONYMOUS, fixed=False)
    if not _CLIENT_NAME.fullmatch(name):
        raise InvalidRequest(
            "X-Client-Id should be 1 to 64 printable ASCII characters without spaces",
            param="X-Client-Id",
        )
    return Caller(name, fixed=True)


def _is_local(headers: Mapping[str, str], peer: str | None) -> bool:
    """A program on this machine: a loopback peer that is no browser page and no proxy.

    The Host check stops a page that rebound its own name to 127.0.0.1 and so sends no Origin.
    """
    if "origin" in headers or any(name in headers for name in _PROXY_HEADERS):
        return False
    host = headers.get("host", "").rsplit(":", 1)[0] if _has_port(headers) else headers.get("host")
    return _is_loopback(peer) and (host == "localhost" or _is_loopback((host or "").strip("[]")))


def _has_port(headers: Mapping[str, str]) -> bool:
    host = headers.get("host", "")
    return ":" in host and not host.endswith("]")


def _is_loopback(address: str | None) -> bool:
    try:
        parsed = ip_address(address or "")
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped.is_loopback
    return parsed.is_loopback
