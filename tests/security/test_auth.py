"""S21: Celery's ``auth`` serializer, with real Celery at the other end and certificates made here."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from hostile import inject, make_app, peek, refusal, runs, task_message
from support import environment, run, worker
from umbel import Umbel
from umbel import serialization as ours
from umbel.exceptions import ContentDisallowed, ImproperlyConfigured, SecurityError
from umbel.interfaces import Place
from umbel.publishing import build
from umbel.security import Certificate, FSCertStore, PrivateKey, SecureSerializer, register_auth
from umbel.worker.inprocess import start_worker

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def pem(key: Any, password: bytes | None = None) -> bytes:
    """Return a private key as its file holds it."""
    how: Any = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    made: bytes = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)
    return made


def certificate(key: Any, name: str = "shop", *, start: float = -1, end: float = 1, serial: int = 7) -> bytes:
    """Return a self-signed certificate that is valid between these days from now."""
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(issuer, issuer, key.public_key(), serial)
    built = builder.not_valid_before(now + timedelta(days=start)).not_valid_after(now + timedelta(days=end))
    return built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """The settings of a program with a key, a certificate and a folder of trusted ones."""
    store = tmp_path / "trusted"
    store.mkdir()
    (tmp_path / "shop.key").write_bytes(pem(KEY))
    for path in (tmp_path / "shop.crt", store / "shop.pem"):
        path.write_bytes(certificate(KEY))
    return {
        "security_key": str(tmp_path / "shop.key"),
        "security_certificate": str(tmp_path / "shop.crt"),
        "security_cert_store": str(store),
        "task_serializer": "auth",
        "accept_content": ["auth"],
        "result_accept_content": ["json"],
    }


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Forget what a test registers."""
    kept = dict(ours._by_name), dict(ours._by_content_type)
    yield
    for mapping, before in zip((ours._by_name, ours._by_content_type), kept, strict=True):
        mapping.clear()  # type: ignore[attr-defined]
        mapping.update(before)  # type: ignore[arg-type]


@pytest.fixture
def app(request: pytest.FixtureRequest, files: dict[str, str]) -> Iterator[Any]:
    made = make_app(request.node.name, **files)
    made.setup_security()
    yield made
    made.close()


def test_s21_auth_tasks_run_and_unsigned_ones_do_not(app: Any) -> None:
    inject(app, task_message())
    inject(app, task_message(b"[[1], {}, {}]", content_type="application/data", id="another"))
    with start_worker(app):
        assert app.send_task("echo", [1, {"a": "é"}]).get(timeout=20) == [[1, {"a": "é"}], {}]
        assert app.send_task("echo", [2], compression="zlib").get(timeout=20) == [[2], {}]
    assert sorted(dead.reason for dead in peek(app, Place.DEAD)) == ["bad_signature", "content_disallowed"]
    assert app.AsyncResult(task_message().headers["id"]).state == "PENDING"


def test_s21_auth_every_part_of_the_content_counts(app: Any) -> None:
    message = build(app, "echo", ("amount", 100), {}, {}).message
    assert runs(app, message)
    signer, signature, kind, encoding, body = base64.b64decode(message.body).split(b"\0\1", 4)
    wrong = [
        (base64.b64encode(b"shop 8"), signature, kind, encoding, body),
        (signer, base64.b64encode(bytes(256)), kind, encoding, body),
        (signer, signature, kind, encoding, body.replace(b"100", b"900")),
        (signer, signature, kind, encoding),
        (b"\xff", b"\xff", b"\xff", b"\xff", b"\xff"),
    ]
    for parts in wrong:
        message.body = base64.b64encode(b"\0\1".join(parts))
        assert refusal(app, message) == "bad_signature", parts
    # The type of what was signed is not covered, so only a harmless one is followed.
    message.body = base64.b64encode(
        b"\0\1".join((signer, signature, b"application/x-python-serialize", b"binary", body))
    )
    assert refusal(app, message) == "content_disallowed"


def test_s21_auth_a_pickle_that_was_signed_is_refused_unless_allowed(app: Any, files: dict[str, str]) -> None:
    with pytest.raises(ImproperlyConfigured, match="accept_unsafe"):
        app.setup_security(serializer="pickle")
    with pytest.raises(ImproperlyConfigured, match="accept_unsafe"):
        app.setup_security(allowed_serializers=["pickle"])
    writer = make_app("writer", accept_unsafe=True, **files)
    writer.setup_security(serializer="pickle")
    message = build(writer, "echo", (1,), {}, {}).message
    app.setup_security()
    assert refusal(app, message) == "content_disallowed"
    app.conf.accept_unsafe = True
    app.setup_security(allowed_serializers=["pickle"])
    assert runs(app, message)


def test_s21_auth_certificates_that_are_not_trusted(app: Any, files: dict[str, str], tmp_path: Path) -> None:
    message = build(app, "echo", (), {}, {}).message
    empty = tmp_path / "empty"
    empty.mkdir()
    app.setup_security(store=str(empty))
    assert refusal(app, message) == "bad_signature"
    Path(files["security_cert_store"], "shop.pem").write_bytes(certificate(OTHER_KEY))
    app.setup_security()
    assert refusal(app, message) == "bad_signature"


def test_s21_auth_certificates_out_of_their_time(tmp_path: Path) -> None:
    (tmp_path / "old.pem").write_bytes(certificate(KEY, start=-2, end=-1))
    with pytest.raises(SecurityError, match="Expired"):
        FSCertStore(tmp_path)
    for cert in (certificate(KEY, start=-2, end=-1), certificate(KEY, start=1, end=2)):
        with pytest.raises(SecurityError, match=r"Expired|not valid yet"):
            Certificate(cert).verify(b"x", PrivateKey(pem(KEY)).sign(b"x", hashes.SHA256()), hashes.SHA256())


def test_s21_auth_keys_and_certificates_that_are_none(tmp_path: Path) -> None:
    curve = ec.generate_private_key(ec.SECP256R1())
    for wrong in (lambda: PrivateKey(b"junk"), lambda: Certificate(b"junk"), lambda: PrivateKey(pem(curve)),
                  lambda: Certificate(certificate(curve)), lambda: PrivateKey(pem(KEY, b"secret"), b"wrong"),
                  lambda: SecureSerializer().serialize([1]), lambda: SecureSerializer().deserialize(b"")):  # fmt: skip
        with pytest.raises(SecurityError):
            wrong()
    assert PrivateKey(pem(KEY, b"secret"), "secret").sign(b"x", hashes.SHA256())
    for digest in ("md5", "sha1", "nonsense"):
        with pytest.raises(ImproperlyConfigured, match="security_digest"):
            register_auth(digest=digest)


def test_s21_auth_half_a_configuration_is_an_error(files: dict[str, str]) -> None:
    def app(**changes: Any) -> Any:
        return Umbel("shop", set_as_current=False, **{**files, **changes})

    with pytest.raises(ImproperlyConfigured, match="accept_content"):
        app(accept_content=["auth", "json"]).setup_security()
    with pytest.raises(ImproperlyConfigured, match="task_serializer"):
        app(task_serializer="json").setup_security()
    with pytest.raises(ImproperlyConfigured, match="security_cert_store"):
        app(security_cert_store=None).setup_security()
    with pytest.raises(ImproperlyConfigured, match="security_certificate"):
        app(security_certificate="/nowhere.crt").setup_security()


def test_s21_auth_and_shared_keys_may_be_used_together(request: pytest.FixtureRequest, files: dict[str, str]) -> None:
    paths = {name.removeprefix("security_"): files.pop(name) for name in list(files) if name.startswith("security_")}
    app = make_app(request.node.name, security_key="k" * 32, **files)
    app.setup_security(key=paths["key"], cert=paths["certificate"], store=paths["cert_store"])
    message = build(app, "echo", (1,), {}, {}).message
    assert runs(app, message)
    # The name of the task, which a certificate does not cover.
    message.headers["task"] = "fail"
    assert refusal(app, message) == "bad_signature"


def test_s21_auth_reads_and_writes_what_celerys_own_code_does(files: dict[str, str]) -> None:
    from celery.security.certificate import Certificate as TheirCertificate
    from celery.security.certificate import FSCertStore as TheirStore
    from celery.security.key import PrivateKey as TheirKey
    from celery.security.serialization import SecureSerializer as Theirs

    cert = Path(files["security_certificate"]).read_text()
    theirs = Theirs(TheirKey(pem(KEY).decode()), TheirCertificate(cert), TheirStore(files["security_cert_store"]))
    mine = SecureSerializer(PrivateKey(pem(KEY)), Certificate(cert), FSCertStore(files["security_cert_store"]))
    value = [[1, "é\0\1", None], {"a": {"b": 2.5}}, {"callbacks": None}]
    assert mine.deserialize(theirs.serialize(value)) == value
    assert theirs.deserialize(mine.serialize(value)) == value


TASKS = """
import os
from {module} import {cls}
app = {cls}("peer", broker=os.environ["URL"], backend=os.environ["URL"])
app.conf.update(**{settings!r})
app.setup_security()

@app.task(name="add")
def add(x, y):
    return x + y
"""


@pytest.mark.parametrize(("client", "server"), [("celery", "umbel"), ("umbel", "celery")], ids=lambda side: side)
def test_s21_auth_with_real_celery(
    client: str, server: str, tmp_path: Path, redis_url: str, files: dict[str, str]
) -> None:
    env = environment(URL=redis_url, C_FORCE_ROOT="1")
    for side, module in (("client", client), ("worker", server)):
        (tmp_path / side).mkdir()
        cls = {"celery": "Celery", "umbel": "Umbel"}[module]
        text = TASKS.format(module=module, cls=cls, settings=files)
        (tmp_path / side / "signed_tasks.py").write_text(text)
    code = "from signed_tasks import add\nprint([add.delay(2, n).get(timeout=30) for n in range(3)])"
    with worker("signed_tasks", "-c", "1", "-l", "info", cwd=tmp_path / "worker", env=env, celery=server == "celery"):
        assert json.loads(run(code, cwd=tmp_path / "client", env=env, timeout=60)) == [2, 3, 4]


def test_s21_auth_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.delitem(sys.modules, "umbel.security")
    with pytest.raises(ImproperlyConfigured, match=r"umbel\[auth\]"):
        Umbel("shop", set_as_current=False).setup_security()


def test_s21_auth_content_is_of_a_type_that_must_be_accepted(app: Any) -> None:
    data = ours.dumps([1], "auth")
    assert data[0] == "application/data"
    with pytest.raises(ContentDisallowed):
        ours.loads(b"[1]", "application/json", "utf-8", ["auth"])
