"""Signed messages: who has no key can neither make a message that a worker runs, nor change one.

The signature travels in the header ``umbel-signature``, which a Celery peer carries along and ignores::

    1 : id of the key : unix time : bound to a queue or any : retries : HMAC-SHA-256 in base64url

It covers all of that, the queue, the content type and encoding, ``correlation_id`` and ``reply_to``, every header, and
the body as it is sent. It is checked before anything of the body is unpacked or decoded. It does not hide anything,
and it does not make a message unique: one that was signed can be sent again, for as long as ``security_max_age`` lets.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from umbel.envelope import Message
from umbel.exceptions import EncodeError, ImproperlyConfigured, SecurityError
from umbel.jsoncodec import encode_text, make_encoder

HEADER: Final = "umbel-signature"

_VERSION: Final = "1"
_PURPOSE: Final = b"umbel message 1"
_BOUND, _ANY = "queue", "any"
_TIME: Final = re.compile(r"[0-9]{1,12}")
_SHORTEST: Final = 16
_LONGEST_FILE: Final = 1 << 16
_FILE: Final = "file:"
_LIKE_A_PATH: Final = ("/", "~", "./", "../", "-----BEGIN")
_LIKE_A_FILE: Final = (".pem", ".key", ".crt", ".cer", ".txt")
# Written by brokers, by kombu and by our workers on the way, so nobody who signs can know them.
_ADDED_ON_THE_WAY: Final = frozenset({
    HEADER, "umbel-parked", "redelivered", "x-death", "x-delivery-count", "x-acquired-count", "x-first-death-exchange",
    "x-first-death-queue", "x-first-death-reason", "x-last-death-exchange", "x-last-death-queue",
    "x-last-death-reason",
})  # fmt: skip

Verifier = Callable[[Message, str], SecurityError | None]
"""Returns why a message that was taken from this queue must not be run, or None."""


class Keyring:
    """The keys of one app: the first signs, all verify. Immutable and safe to share."""

    __slots__ = ("_keys", "_signer", "_signing_id")

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys:
            raise ImproperlyConfigured(f"security_key is empty; {_ADVICE}")
        self._keys = {key_id(key): key for key in reversed(keys)}
        self._signer = keys[0]
        self._signing_id = key_id(keys[0])

    def __repr__(self) -> str:
        return f"<Keyring {', '.join(self._keys)}>"

    def derived(self, purpose: bytes) -> bytes:
        """Return a key for something else, made of the one that signs; who has it cannot sign messages."""
        return hmac.digest(self._signer, purpose, "sha256")

    def sign(self, message: Message, queue: str | None, at: float) -> None:
        """Put the signature into the message's headers, in place of the one that may be there.

        :param queue: the only queue from which it may be run; None where the sender cannot know.
        :param at: now, in seconds since the epoch.
        """
        bound = _ANY if queue is None else _BOUND
        prefix = f"{_VERSION}:{self._signing_id}:{int(at)}:{bound}:{_attempt(message)}"
        message.headers[HEADER] = f"{prefix}:{_mac(self._signer, prefix, message, queue or '')}"

    def refusal(self, message: Message, queue: str, *, now: float = 0.0, max_age: float = 0.0) -> SecurityError | None:
        """Return what is wrong with the message's signature, or None.

        :param queue: where it was taken from.
        :param max_age: seconds since it was signed, or since its ``eta``; 0 for no limit.
        """
        given = message.headers.get(HEADER)
        if given is None:
            return Unsigned("it is not signed")
        prefix, _, mac = str(given).rpartition(":")
        parts = prefix.split(":")
        if len(parts) != 5 or parts[0] != _VERSION or not _TIME.fullmatch(parts[2]) or parts[3] not in (_BOUND, _ANY):
            return SecurityError("its signature is of a form that is not known here")
        if parts[4] != _attempt(message):
            # A Celery worker that retries a task copies our header onto the new message, where it proves nothing.
            return Unsigned("its signature belongs to another attempt of the task")
        key = self._keys.get(parts[1])
        if key is None:
            return SecurityError("it is signed with a key that is not in security_key")
        try:
            expected = _mac(key, prefix, message, queue if parts[3] == _BOUND else "")
        except EncodeError as error:
            return SecurityError(str(error))
        # As bytes: compare_digest refuses text that is not ASCII, and this text is a stranger's.
        if not hmac.compare_digest(expected.encode(), mac.encode("utf-8", "surrogatepass")):
            return SecurityError("its signature does not fit: it was changed, or comes from another queue")
        if max_age and now - max(float(parts[2]), _eta(message)) > max_age:
            return SecurityError(f"it was signed more than {max_age:g} s ago (security_max_age)")
        return None


class Unsigned(SecurityError):
    """A message has no signature, where one is required."""


_ADVICE = 'make a key with: python -c "import secrets; print(secrets.token_urlsafe(32))"'


def generate_key() -> str:
    """Return a new random key of 256 bits, as text.

    >>> len(generate_key())
    43
    """
    return secrets.token_urlsafe(32)


def key_id(key: bytes) -> str:
    """Return the public name of a key: it says which one signed, and nothing about the key."""
    return hashlib.sha256(b"umbel key id" + key).hexdigest()[:8]


def _mac(key: bytes, prefix: str, message: Message, queue: str) -> str:
    sent = message.properties
    headers = {name: value for name, value in message.headers.items() if name not in _ADDED_ON_THE_WAY}
    parts = (
        _PURPOSE,
        prefix.encode(),
        queue.encode("utf-8", "surrogatepass"),
        message.content_type.encode("utf-8", "surrogatepass"),
        message.content_encoding.encode("utf-8", "surrogatepass"),
        _canonical([sent.get("correlation_id"), sent.get("reply_to"), headers]),
        message.body,
    )
    # Each part with its length, so that nothing can be moved from one into the next.
    text = b"".join(piece for part in parts for piece in (len(part).to_bytes(8, "big"), part))
    return base64.urlsafe_b64encode(hmac.digest(key, text, "sha256")).rstrip(b"=").decode("ascii")


def _canonical(fields: Any) -> bytes:
    """Return bytes that are the same before the values are written as JSON and after they were read."""
    try:
        if _odd_keys(fields):
            # JSON makes text of such keys, which would sort differently on the other side.
            fields = json.loads(encode_text(fields))
        return _encode_sorted(fields).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise EncodeError(f"a message with such headers cannot be signed: {error}") from error


_encode_sorted: Final = make_encoder(allow_nan=True, sort_keys=True)


def _odd_keys(value: Any) -> bool:
    if isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str or (type(item) not in _SCALARS and _odd_keys(item)):
                return True
        return False
    return isinstance(value, list | tuple) and any(map(_odd_keys, value))


_SCALARS: Final = frozenset({str, int, bool, float, type(None)})


def _attempt(message: Message) -> str:
    return str(message.headers.get("retries") or 0)


def _eta(message: Message) -> float:
    try:
        moment = datetime.fromisoformat(str(message.headers.get("eta")))
    except ValueError:
        return 0.0
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


# -- from the settings -------------------------------------------------------------------------------------------


def keyring_of(conf: Any) -> Keyring | None:
    """Return the keys in ``security_key``, or None where messages are not signed.

    With ``security_certificate`` or ``security_cert_store`` set, ``security_key`` is Celery's: the file of an X.509
    private key, for the ``auth`` serializer (:mod:`umbel.security`). Raises :exc:`ImproperlyConfigured` for a key that
    is short or looks like a forgotten ``file:``.
    """
    given = conf.security_key
    if given is None or conf.security_certificate or conf.security_cert_store:
        return None
    return _keyring(tuple(given) if isinstance(given, list | tuple) else (given,))


@functools.lru_cache(maxsize=8)
def _keyring(given: tuple[Any, ...]) -> Keyring:
    return Keyring([key for each in given for key in _read_keys(each)])


def verifier_of(conf: Any, now: Callable[[], float]) -> Verifier | None:
    """Return the check that a worker makes of each message, or None where it makes none.

    :param now: says the time, in seconds since the epoch.
    """
    keys = keyring_of(conf)
    if keys is None:
        return None
    max_age = float(conf.security_max_age or 0)
    lenient = bool(conf.security_accept_unsigned)

    def verify(message: Message, queue: str) -> SecurityError | None:
        refused = keys.refusal(message, queue, now=now(), max_age=max_age)
        return None if lenient and isinstance(refused, Unsigned) else refused

    return verify


def sign_batch(conf: Any, outgoings: Iterable[Any], at: float) -> None:
    """Sign the messages of these :class:`~umbel.interfaces.Outgoing`, each for its queue; nothing without a key."""
    keys = keyring_of(conf)
    if keys is not None:
        for outgoing in outgoings:
            keys.sign(outgoing.message, outgoing.queue, at)


def _read_keys(given: Any) -> list[bytes]:
    if isinstance(given, os.PathLike):
        return _from_file(os.fspath(given))
    if isinstance(given, bytes):
        return [_strong(given)]
    if not isinstance(given, str):
        raise ImproperlyConfigured(f"security_key holds text, bytes, paths, or a list of them, not {type(given)}")
    if given.startswith(_FILE):
        return _from_file(given.removeprefix(_FILE))
    if given.startswith(_LIKE_A_PATH) or given.lower().endswith(_LIKE_A_FILE):
        # The name of a file is no secret. Celery takes a path here, so this is an easy mistake.
        raise ImproperlyConfigured(
            "security_key looks like a path or a PEM text, not like a key. For a file of keys write 'file:<path>'; for "
            "Celery's X.509 signatures also set security_certificate and security_cert_store; to use this very text "
            "as a key give it as bytes"
        )
    return [_strong(given.encode("utf-8"))]


def _strong(key: bytes) -> bytes:
    if len(key) < _SHORTEST:
        raise ImproperlyConfigured(f"security_key has {len(key)} bytes; it needs {_SHORTEST} or more: {_ADVICE}")
    return key


def _from_file(path: str | bytes) -> list[bytes]:
    """Return the keys of a file, one a line; empty lines and those that begin with ``#`` do not count."""
    name = os.path.expanduser(os.fsdecode(path))
    try:
        # Not blocking: a pipe without a writer would hold the program for ever.
        descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(_LONGEST_FILE + 1) if stat.S_ISREG(status.st_mode) else b""
    except OSError as error:
        raise ImproperlyConfigured(f"security_key: {name}: {error.strerror or error}") from error
    if not stat.S_ISREG(status.st_mode) or len(data) > _LONGEST_FILE:
        raise ImproperlyConfigured(f"security_key: {name} is no file of keys")
    if os.name == "posix" and status.st_mode & stat.S_IWOTH:
        raise ImproperlyConfigured(f"security_key: everybody may write to {name}; run: chmod 600 {name}")
    lines = [line.strip() for line in data.splitlines()]
    keys = [line for line in lines if line and not line.startswith(b"#")]
    if not keys or any(line.startswith(b"-----BEGIN") for line in keys):
        raise ImproperlyConfigured(f"security_key: {name} holds no key; put one on each line: {_ADVICE}")
    return [_strong(key) for key in keys]
