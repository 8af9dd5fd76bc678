"""Messages signed with X.509 certificates: Celery's ``auth`` serializer, readable and writable.

The serializer signs the body alone. The headers of a message, the name of its task among them, are not covered: whoever
can write to the queue can give a signed body to another task. ``security_key`` (:mod:`umbel.signing`) covers them.
"""

from __future__ import annotations

import base64
import binascii
import glob
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from umbel import serialization
from umbel.current import current_app
from umbel.exceptions import ImproperlyConfigured, SecurityError

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
except ImportError as error:
    raise ImproperlyConfigured("the auth serializer needs a package: pip install 'umbel[auth]'") from error

__all__ = ["CertStore", "Certificate", "FSCertStore", "PrivateKey", "SecureSerializer", "register_auth",
           "setup_security"]  # fmt: skip

DEFAULT_DIGEST: Final = "sha256"
_SEPARATOR: Final = b"\x00\x01"
_DIGESTS: Final = {"sha224", "sha256", "sha384", "sha512", "sha3_224", "sha3_256", "sha3_384", "sha3_512"}

_NOT_SIGNING: Final = (
    "signing needs both sides: set task_serializer = 'auth', so that messages are signed, and accept_content = "
    "['auth'], so that only signed ones are read"
)
_MISSING: Final = (
    "the auth serializer needs three files; set security_key (the private key), security_certificate and "
    "security_cert_store (the certificates that are trusted), or give them to setup_security()"
)


def setup_security(
    allowed_serializers: Collection[str] | None = None,
    key: str | os.PathLike[str] | None = None,
    key_password: str | bytes | None = None,
    cert: str | os.PathLike[str] | None = None,
    store: str | os.PathLike[str] | None = None,
    digest: str | None = None,
    serializer: str = "json",
    app: Any = None,
) -> None:
    """Sign bodies with a certificate in this process, and read those that are signed with a trusted one.

    Call it where the app is made, in clients and in workers. What is not given comes from ``security_key`` (a path),
    ``security_key_password``, ``security_certificate``, ``security_cert_store`` and ``security_digest``. Raises
    :exc:`ImproperlyConfigured` unless ``task_serializer`` is ``"auth"`` and ``accept_content`` is ``["auth"]``, and for
    a serializer such as pickle without ``accept_unsafe``.

    :param allowed_serializers: what else than JSON and ``serializer`` may be inside a signed body.
    :param serializer: how a body is encoded before it is signed.
    """
    app = current_app if app is None else app
    conf = app.conf
    if conf.task_serializer != "auth" or list(conf.accept_content) != ["auth"]:
        raise ImproperlyConfigured(_NOT_SIGNING)
    key, cert, store = key or conf.security_key, cert or conf.security_certificate, store or conf.security_cert_store
    if not (key and cert and store):
        raise ImproperlyConfigured(_MISSING)
    if not isinstance(key, str | os.PathLike):
        raise ImproperlyConfigured("with certificates, security_key is the path of the private key's file")
    for name in (serializer, *(allowed_serializers or ())):
        serialization.refuse_unsafe(name, conf, "setup_security()")
    password = key_password or conf.security_key_password
    register_auth(
        _read(key, "security_key"),
        password,
        _read(cert, "security_certificate"),
        store,
        digest or conf.security_digest,
        serializer,
        allowed_serializers,
    )


def register_auth(
    key: str | bytes | None = None,
    key_password: str | bytes | None = None,
    cert: str | bytes | None = None,
    store: str | os.PathLike[str] | None = None,
    digest: str = DEFAULT_DIGEST,
    serializer: str = "json",
    allowed_serializers: Collection[str] | None = None,
) -> None:
    """Make ``auth`` a serializer of this process. Key and certificate are PEM texts; ``store`` is a path."""
    secure = SecureSerializer(
        PrivateKey(key, key_password) if key else None,
        Certificate(cert) if cert else None,
        FSCertStore(store) if store else None,
        digest,
        serializer,
        allowed_serializers,
    )
    serialization.register("auth", secure.serialize, secure.deserialize, "application/data", "utf-8")


class SecureSerializer:
    """Signs what another serializer encodes, and verifies before anything is decoded. Safe to share."""

    def __init__(
        self,
        key: PrivateKey | None = None,
        cert: Certificate | None = None,
        cert_store: CertStore | None = None,
        digest: str = DEFAULT_DIGEST,
        serializer: str = "json",
        allowed_serializers: Collection[str] | None = None,
    ) -> None:
        self._key = key
        self._cert = cert
        self._cert_store = cert_store
        self._digest = get_digest_algorithm(digest)
        self._serializer = serializer
        self._accept = frozenset({"json", serializer, *(allowed_serializers or ())})

    def serialize(self, data: Any) -> str:
        """Return the signed value as text. Raises :exc:`EncodeError` if it cannot be encoded."""
        if self._key is None or self._cert is None:
            raise SecurityError("this process has no private key and certificate to sign with")
        content_type, content_encoding, body = serialization.dumps(data, self._serializer)
        fields = (
            base64.b64encode(self._cert.get_id().encode()),
            base64.b64encode(self._key.sign(body, self._digest)),
            content_type.encode(),
            content_encoding.encode(),
            body,
        )
        return base64.b64encode(_SEPARATOR.join(fields)).decode("ascii")

    def deserialize(self, data: bytes | str) -> Any:
        """Return the value that a trusted certificate has signed.

        Raises :exc:`SecurityError` if none has, :exc:`ContentDisallowed` if what was signed is of a type that is not
        allowed: the signature does not cover the type, so it must be harmless in itself.
        """
        if self._cert_store is None:
            raise SecurityError("this process has no certificates to verify signatures with")
        try:
            signer, signature, content_type, content_encoding, body = base64.b64decode(data).split(_SEPARATOR, 4)
            signer, signature = base64.b64decode(signer), base64.b64decode(signature)
            names = content_type.decode("ascii"), content_encoding.decode("ascii")
            who = signer.decode()
        except (ValueError, binascii.Error) as error:
            raise SecurityError("Unable to deserialize: this is no signed content") from error
        self._cert_store[who].verify(body, signature, self._digest)
        return serialization.loads(body, *names, accept=self._accept)


class Certificate:
    """An X.509 certificate with an RSA key."""

    def __init__(self, cert: str | bytes) -> None:
        with _as_security_error("Invalid certificate"):
            self._cert = x509.load_pem_x509_certificate(_bytes(cert))
            key = self._cert.public_key()
        if not isinstance(key, rsa.RSAPublicKey):
            raise SecurityError("Invalid certificate: its key is not RSA, and Celery's format knows no other")
        self._key = key

    def has_expired(self) -> bool:
        """Say whether its time is over."""
        return datetime.now(UTC) >= self._cert.not_valid_after_utc

    def is_early(self) -> bool:
        """Say whether its time has not begun."""
        return datetime.now(UTC) < self._cert.not_valid_before_utc

    def get_pubkey(self) -> rsa.RSAPublicKey:
        """Return the public key."""
        return self._key

    def get_serial_number(self) -> int:
        """Return the serial number."""
        return self._cert.serial_number

    def get_issuer(self) -> str:
        """Return the issuer as text."""
        return " ".join(str(part.value) for part in self._cert.issuer)

    def get_id(self) -> str:
        """Return issuer and serial number, by which a message names its signer."""
        return f"{self.get_issuer()} {self.get_serial_number()}"

    def verify(self, data: bytes, signature: bytes, digest: hashes.HashAlgorithm) -> None:
        """Raise :exc:`SecurityError` unless this certificate's key has signed the data and its time is now."""
        if self.has_expired() or self.is_early():
            raise SecurityError(f"Expired certificate: {self.get_id()!r}" if self.has_expired() else
                                f"Certificate is not valid yet: {self.get_id()!r}")  # fmt: skip
        try:
            self._key.verify(signature, data, _padding(digest), digest)
        except InvalidSignature:
            raise SecurityError("Bad signature: the content is not what was signed") from None


class PrivateKey:
    """An RSA private key. Its ``repr`` shows nothing of it."""

    def __init__(self, key: str | bytes, password: str | bytes | None = None) -> None:
        with _as_security_error("Invalid private key"):
            loaded = load_pem_private_key(_bytes(key), password=_bytes(password) if password else None)
        if not isinstance(loaded, rsa.RSAPrivateKey):
            raise SecurityError("Invalid private key: it is not RSA, and Celery's format knows no other")
        self._key = loaded

    def sign(self, data: bytes | str, digest: hashes.HashAlgorithm) -> bytes:
        """Return the signature of the data."""
        with _as_security_error("Unable to sign data"):
            return self._key.sign(_bytes(data), _padding(digest), digest)


class CertStore:
    """Trusted certificates, by issuer and serial number."""

    def __init__(self) -> None:
        self._certs: dict[str, Certificate] = {}

    def itercerts(self) -> Iterator[Certificate]:
        """Yield each of them."""
        yield from self._certs.values()

    def __getitem__(self, id: str | bytes) -> Certificate:
        name = id.decode("utf-8", "replace") if isinstance(id, bytes) else id
        try:
            return self._certs[name]
        except KeyError:
            raise SecurityError(f"Unknown certificate: {name[:200]!r}") from None

    def add_cert(self, cert: Certificate) -> None:
        """Trust a certificate. Raises :exc:`SecurityError` if one of the same issuer and number is there."""
        if cert.get_id() in self._certs:
            raise SecurityError(f"Duplicate certificate: {cert.get_id()!r}")
        self._certs[cert.get_id()] = cert


class FSCertStore(CertStore):
    """The certificates of a folder, or of the files that a pattern finds. Read once, when it is made."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        pattern = os.fspath(path)
        if os.path.isdir(pattern):
            pattern = os.path.join(glob.escape(pattern), "*")
        for name in sorted(glob.glob(pattern)):
            cert = Certificate(_read(name, "security_cert_store"))
            if cert.has_expired():
                raise SecurityError(f"Expired certificate: {cert.get_id()!r}")
            self.add_cert(cert)


def get_digest_algorithm(digest: str = DEFAULT_DIGEST) -> hashes.HashAlgorithm:
    """Return the digest of a name such as ``sha256``. Broken ones, MD5 and SHA-1, are refused."""
    name = digest.lower()
    if name not in _DIGESTS:
        raise ImproperlyConfigured(f"security_digest {digest!r} is not one of {', '.join(sorted(_DIGESTS))}")
    algorithm: hashes.HashAlgorithm = getattr(hashes, name.upper())()
    return algorithm


def _padding(digest: hashes.HashAlgorithm) -> padding.PSS:
    return padding.PSS(mgf=padding.MGF1(digest), salt_length=padding.PSS.MAX_LENGTH)


def _bytes(text: str | bytes) -> bytes:
    return text.encode("utf-8") if isinstance(text, str) else text


def _read(path: str | os.PathLike[str], setting: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ImproperlyConfigured(f"{setting}: {os.fspath(path)}: {error.strerror or error}") from error


@contextmanager
def _as_security_error(what: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SecurityError(f"{what}: {error}") from error
