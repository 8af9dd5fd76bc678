"""Who may look at the dashboard, and who may change something.

Accounts stand in a file, one a line: ``name:role:hash``, where the role is ``viewer`` or ``operator`` and the hash that
of a password (scrypt) or a token. Whoever has signed in carries a cookie that is signed with a key of this process, or
of all processes of a server.
"""

from __future__ import annotations

import base64
import enum
import functools
import hashlib
import hmac
import ipaddress
import json
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from umbel.exceptions import ImproperlyConfigured

#: Seconds after which one has to sign in again.
SESSION: Final = 12 * 3600
_COST: Final = (2**14, 8, 1)
_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class Role(enum.IntEnum):
    """What somebody may do; each may do what those before it may."""

    NOBODY = 0
    VIEWER = 1
    OPERATOR = 2


ROLES: Final = {"viewer": Role.VIEWER, "operator": Role.OPERATOR}


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """Whoever sends a request. ``nonce`` belongs to the browser's session, empty where none is needed."""

    name: str
    role: Role
    nonce: str = ""
    local: bool = False  # here by being on this machine


class Account(msgspec.Struct, frozen=True):
    """One line of the file."""

    name: str
    role: Role
    hash: str


def hash_password(password: str) -> str:
    """Return what is kept of a password."""
    salt = secrets.token_bytes(16)
    n, r, p = _COST
    return f"scrypt${n}${r}${p}${salt.hex()}${_scrypt(password, salt, n, r, p).hex()}"


def hash_token(token: str) -> str:
    """Return what is kept of a token; it is long and random, so that one round will do."""
    return f"token${hashlib.sha256(token.encode()).hexdigest()}"


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=64 << 20, dklen=32)


def _fits(password: str, kept: str) -> bool:
    _, n, r, p, salt, digest = kept.split("$")
    made = _scrypt(password, bytes.fromhex(salt), int(n), int(r), int(p))
    return hmac.compare_digest(made, bytes.fromhex(digest))


#: Checked where the name is unknown, so that the answer takes as long.
_NOBODY: Final = f"scrypt${_COST[0]}${_COST[1]}${_COST[2]}${'00' * 16}${'00' * 32}"


class Accounts:
    """The accounts of one file."""

    def __init__(self, accounts: Sequence[Account]) -> None:
        self._passwords = {each.name: each for each in accounts if each.hash.startswith("scrypt$")}
        self._tokens = [each for each in accounts if each.hash.startswith("token$")]

    def __len__(self) -> int:
        return len(self._passwords) + len(self._tokens)

    def by_password(self, name: str, password: str) -> Account | None:
        """Return the account, or None; either takes the time of one hash."""
        account = self._passwords.get(name)
        fits = _fits(password, account.hash if account is not None else _NOBODY)
        return account if fits else None

    def by_token(self, token: str) -> Account | None:
        """Return the account of a token, or None."""
        made = hash_token(token)
        found = None
        for each in self._tokens:
            if hmac.compare_digest(each.hash.encode(), made.encode()):
                found = each
        return found


def read_accounts(text: str, where: str) -> Accounts:
    """Return the accounts in the text of a file. Raises :exc:`ImproperlyConfigured` that names the line."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, role, kept = ([*line.strip().split(":", 2), "", ""])[:3]
        if not name or role not in ROLES or not _is_hash(kept):
            raise ImproperlyConfigured(
                f"{where}, line {number}: it should be name:viewer:hash or name:operator:hash; "
                "'umbel dashboard --add-user NAME --auth FILE' writes such lines"
            )
        found.append(Account(name, ROLES[role], kept))
    if not found:
        raise ImproperlyConfigured(f"{where} has no account; 'umbel dashboard --add-user NAME --auth {where}' adds one")
    return Accounts(found)


def _is_hash(kept: str) -> bool:
    kind, *rest = kept.split("$")
    if kind == "token":
        return len(rest) == 1 and len(rest[0]) == 64
    return kind == "scrypt" and len(rest) == 5 and all(part.isdecimal() for part in rest[:3])


class Sessions:
    """Cookies for browsers, signed with a key. Safe to share between threads."""

    def __init__(self, key: Callable[[], bytes | None] | None = None) -> None:
        """Make them.

        :param key: returns the key, the same each time, so that several processes take each other's cookies; called
            when the first one is needed. Without it, or where it returns None, this process alone knows the key.
        """
        self._shared = key
        self._own = secrets.token_bytes(32)

    @functools.cached_property
    def _key(self) -> bytes:
        return (self._shared() if self._shared is not None else None) or self._own

    def make(self, name: str = "", role: Role = Role.NOBODY) -> str:
        """Return a cookie's value; without a name it is only for the tokens of forms."""
        fields = [name, int(role), int(time.time()), secrets.token_urlsafe(12)]
        body = base64.urlsafe_b64encode(json.dumps(fields).encode()).decode().rstrip("=")
        return f"{body}.{self._mac('session', body)}"

    def read(self, value: str) -> Person | None:
        """Return whom a cookie names, or None where it is not ours or too old."""
        body, _, mac = value.partition(".")
        if not hmac.compare_digest(mac.encode(), self._mac("session", body).encode()):
            return None
        name, role, since, nonce = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        if time.time() - since > SESSION:
            return None
        return Person(name=name, role=Role(role), nonce=nonce)

    def seal(self, text: str) -> str:
        """Return a text for a cookie, so that only what we wrote is shown."""
        body = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
        return f"{body}.{self._mac('flash', body)}"

    def unseal(self, value: str) -> str:
        """Return the text of a cookie, empty where we did not write it."""
        body, _, mac = value.partition(".")
        if not hmac.compare_digest(mac.encode(), self._mac("flash", body).encode()):
            return ""
        return base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)).decode()

    def token(self, nonce: str) -> str:
        """Return the token that the forms of a session carry."""
        return self._mac("form", nonce)

    def fits(self, token: str, nonce: str) -> bool:
        """Say whether a form came from a page of this session."""
        return bool(nonce) and hmac.compare_digest(token.encode(), self.token(nonce).encode())

    def _mac(self, purpose: str, text: str) -> str:
        return hmac.new(self._key, f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()


class Access:
    """The rules of one dashboard."""

    def __init__(
        self,
        *,
        accounts: Accounts | None = None,
        authorize: Callable[[Any], str | None] | None = None,
        trusted_header: str | None = None,
        trusted_from: Sequence[str] = (),
        trusted_role: Role = Role.VIEWER,
        hosts: Sequence[str] | None = None,
        read_only: bool = False,
        key: Callable[[], bytes | None] | None = None,
    ) -> None:
        """Set the rules.

        :param trusted_header: the header in which a proxy names who has signed in there; it counts only from the
            addresses of ``trusted_from``.
        :param hosts: host names that are answered besides this machine's; None is any, where ``authorize`` decides.
        :param key: returns the key of cookies and forms; without it this process makes one of its own.
        """
        self.accounts = accounts
        self.authorize = authorize
        self.trusted_header = trusted_header.lower() if trusted_header else None
        self.trusted_from = tuple(ipaddress.ip_network(each, strict=False) for each in trusted_from)
        self.trusted_role = trusted_role
        self.read_only = read_only
        self.sessions = Sessions(key)
        self._hosts = None if hosts is None else frozenset(each.lower().rstrip(".") for each in hosts)

    @property
    def guarded(self) -> bool:
        """Whether anything is asked of those who come."""
        return self.accounts is not None or self.authorize is not None or self.trusted_header is not None

    @property
    def foreign(self) -> Sequence[str]:
        """The names in ``hosts`` by which others are led here, sorted; there may be none where it is not guarded.

        A proxy on this machine that passes such a name on comes from this machine, as its own browsers do, and need
        not say that it is a proxy.
        """
        return sorted(name for name in self._hosts or () if not is_loopback(name) and not name.endswith(".localhost"))

    def knows_host(self, host: str) -> bool:
        """Say whether a Host header is one of ours.

        A page of a stranger whose name leads here sends that name. Numbers cannot be misled so, but where nothing is
        asked of those who come, only this machine's own will do.
        """
        name = _without_port(host)
        if self._hosts is None and self.authorize is not None:
            return True
        if name in _LOCAL or name in (self._hosts or ()):
            return True
        return self.guarded and (_is_address(name) or name in _own_names())

    def may_call(self, origin: str, host: str) -> bool:
        """Say whether a form that comes from this origin is one of ours."""
        scheme, separator, place = origin.partition("://")
        if not separator or scheme not in ("http", "https"):
            return False
        return place.lower() == host.lower() or _without_port(place) in (self._hosts or ())

    def trusts(self, address: str) -> bool:
        """Say whether a proxy at this address may name who has signed in."""
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self.trusted_from)


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach an address."""
    if host in _LOCAL:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _without_port(host: str) -> str:
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0].rstrip(".") if host.count(":") == 1 else host.rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _own_names() -> frozenset[str]:
    return frozenset({socket.gethostname().lower()})


def role_of(word: str | Role | None) -> Role:
    """Return the role that an ``authorize`` means. Raises :exc:`ImproperlyConfigured` for another word."""
    if not word:
        return Role.NOBODY
    if isinstance(word, Role):
        return word
    found = ROLES.get(str(word))
    if found is None:
        raise ImproperlyConfigured(f"authorize returned {word!r}; it should be 'viewer', 'operator' or None")
    return found
