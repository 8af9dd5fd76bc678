"""The dashboard against those who should not be there: S14 to S20 of docs/security.md."""

from __future__ import annotations

import hashlib
import http.client
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")

from click.testing import CliRunner

import umbel.dashboard
from dashboard_support import Visitor, served
from hostile import make_app
from umbel.cli.main import cli
from umbel.dashboard import signin
from umbel.dashboard.access import (
    Access,
    Account,
    Accounts,
    Role,
    hash_password,
    hash_token,
    read_accounts,
    role_of,
)
from umbel.dashboard.guard import POLICY, Attempts
from umbel.dashboard.serving import Server
from umbel.dashboard.signin import _is_ours
from umbel.exceptions import ImproperlyConfigured
from umbel.interfaces import Place

PASSWORD = "correct horse"
TEMPLATES = Path(str(files("umbel.dashboard") / "templates"))
STATIC = Path(str(files("umbel.dashboard") / "static"))
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'"


@pytest.fixture(scope="module")
def accounts() -> Accounts:
    lines = [
        f"ann:operator:{hash_password(PASSWORD)}",
        f"vic:viewer:{hash_password(PASSWORD)}",
        f"robot:operator:{hash_token('robots-token')}",
    ]
    return read_accounts("\n".join(lines), "accounts")


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Any:
    return make_app(request.node.name.replace("[", "-").replace("]", ""))


@pytest.fixture
def open_site(app: Any) -> Iterator[Server]:
    with served(app) as server:
        yield server


@pytest.fixture
def guarded(app: Any, accounts: Accounts) -> Iterator[Server]:
    with served(app, Access(accounts=accounts, hosts=())) as server:
        yield server


# -- S14: nothing that a stranger wrote runs ---------------------------------------------------------------------


def test_s14_every_answer_forbids_inline_scripts_and_other_hosts(open_site: Server) -> None:
    visitor = Visitor(open_site.url)
    for path in ("/", "/dead", "/nope", "/static/umbel.js", "/login", "/healthz"):
        answer = visitor.get(path)
        assert answer.headers["content-security-policy"] == POLICY, path
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
    assert "unsafe" not in POLICY and "default-src 'none'" in POLICY and "frame-ancestors 'none'" in POLICY


def test_s14_templates_hold_no_inline_code_and_name_no_other_host() -> None:
    found = sorted(TEMPLATES.glob("*.html"))
    assert len(found) > 10
    for path in found:
        text = path.read_text()
        assert not re.search(r"\son[a-z]+\s*=|\sstyle\s*=|<style|javascript:|\|\s*safe|autoescape", text), path
        assert not re.search(r"https?://|//[a-z]+\.", text), path
        for script in re.findall(r"<script[^>]*>", text):
            assert "src=" in script, path
    for path in (*STATIC.glob("*.js"), *STATIC.glob("*.css")):
        text = path.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            path
        )
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), path


def test_files_of_others_are_as_they_were_published() -> None:
    vendor = STATIC / "vendor"
    found = re.findall(r"^([0-9a-f]{64})  (\S+)$", (vendor / "VERSIONS.txt").read_text(), re.MULTILINE)
    told = {name: digest for digest, name in found}
    files_of_others = [path for path in vendor.iterdir() if path.suffix in (".js", ".css")]
    assert len(files_of_others) == len(told) == 3
    for path in files_of_others:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == told[path.name], path
        assert re.search("without restriction|Permission to use", licence_of(path)), path


def licence_of(path: Path) -> str:
    return " ".join(path.with_name(f"{path.name.partition('.')[0]}.LICENSE.txt").read_text().split())


def test_s14_hostile_names_are_text(app: Any) -> None:
    app.send_task("echo", args=[HOSTILE], kwargs={HOSTILE: HOSTILE}, queue="celery")
    with served(app) as server:
        live, visitor = server.site.live, Visitor(server.url)
        node = f"w1@{HOSTILE}"
        about = {"hostname": node, "timestamp": time.time(), "local_received": time.time(), "clock": 1}
        live.event({"type": "worker-heartbeat", "freq": 2, "active": 1, "sw_ident": HOSTILE, **about})
        failed = {"uuid": HOSTILE, "exception": f"ValueError({HOSTILE!r})", "traceback": HOSTILE, "name": HOSTILE}
        live.event({"type": "task-failed", **failed, **about})
        live.sample()
        paths = [
            "/",
            "/workers",
            "/errors",
            "/queue?name=celery",
            "/queue?name=%3Cscript%3E",
            "/dead?task=%3Cscript%3E",
        ]
        key = re.search(r"/error\?id=(\w+)", visitor.get("/errors").text)
        assert key is not None
        for path in (*paths, f"/error?id={key[1]}", "/errors?filter=%22%3E%3Cscript%3E"):
            text = visitor.get(path).text
            assert (
                "<script>" not in text
                and "<img src=x" not in text
                and "onerror=alert" not in re.sub(r"&lt;.*?&gt;", "", text)
            ), path
        assert "&lt;script&gt;" in visitor.get("/workers").text


# -- S15: nobody from elsewhere without being asked --------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])
def test_s15_a_public_address_needs_accounts(host: str) -> None:
    ended = CliRunner().invoke(cli, ["-b", "memory://s15", "dashboard", "--host", host])
    assert ended.exit_code == 78
    assert "--add-user" in ended.output and host in ended.output


def test_s15_a_name_for_others_needs_accounts(app: Any, accounts: Accounts) -> None:
    ended = CliRunner().invoke(cli, ["-b", "memory://s15c", "dashboard", "-p", "0", "--allow-host", "x,localhost"])
    assert ended.exit_code == 78
    assert "--allow-host x:" in ended.output and "--add-user" in ended.output
    assert Access(hosts=("localhost", "127.0.0.2", "::1", "shop.localhost")).foreign == []
    assert Access(hosts=("dash.example.org", "192.0.2.7"), accounts=accounts).guarded
    with pytest.raises(ImproperlyConfigured, match=r"dash\.example\.org.*authorize="):
        umbel.dashboard.app(app, hosts=["dash.example.org"])


def test_s15_the_file_of_accounts_is_private_and_right(tmp_path: Path) -> None:
    file = tmp_path / "accounts"
    asked = ["dashboard", "--auth", str(file), "--add-user", "ann", "--role", "viewer"]
    assert CliRunner().invoke(cli, asked, input=f"{PASSWORD}\n{PASSWORD}\n").exit_code == 0
    assert file.stat().st_mode & 0o077 == 0
    assert PASSWORD not in file.read_text()
    token = CliRunner().invoke(cli, ["dashboard", "--auth", str(file), "--add-token", "robot"])
    assert token.exit_code == 0
    found = read_accounts(file.read_text(), "it")
    account = found.by_password("ann", PASSWORD)
    assert account is not None and account.role == 1
    assert found.by_password("ann", "wrong") is None and found.by_password("bob", PASSWORD) is None
    robot = found.by_token(token.output.split()[0])
    assert robot is not None and robot.name == "robot"
    file.chmod(0o644)
    refused = CliRunner().invoke(cli, ["-b", "memory://s15b", "dashboard", "--auth", str(file)])
    assert refused.exit_code == 78 and "chmod 600" in refused.output


@pytest.mark.parametrize("line", ["ann", "ann:root:scrypt$1$2$3$4$5", "ann:viewer:plain", "", "x:operator:token$12"])
def test_s15_a_wrong_line_is_named(line: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="add-user"):
        read_accounts(line, "file")


def test_s15_without_accounts_a_proxy_is_not_believed(open_site: Server) -> None:
    visitor = Visitor(open_site.url)
    assert visitor.get("/").status == 200
    for name in ("x_forwarded_for", "x_forwarded_host", "x_forwarded_proto", "x_forwarded_server", "forwarded", "via"):
        assert visitor.get("/", **{name: "192.0.2.7"}).status == 403, name
    assert visitor.get("/", x_real_ip="192.0.2.7").status == 403
    for version, status in ((b"1.1", b"200"), (b"1.0", b"403")):
        with socket.create_connection(visitor.place, timeout=20) as link:
            link.sendall(b"GET / HTTP/%s\r\nHost: %s\r\nConnection: close\r\n\r\n" % (version, visitor.host.encode()))
            assert link.makefile("rb").readline().split()[1] == status, version


def test_s15_pages_and_streams_want_an_account(guarded: Server) -> None:
    visitor = Visitor(guarded.url)
    to_sign_in = visitor.get("/dead?task=a")
    assert to_sign_in.status == 303
    assert to_sign_in.headers["location"].endswith("/login?next=%2Fdead%3Ftask%3Da")
    for path in ("/live", "/live/series", "/", "/queues", "/worker?name=a"):
        assert visitor.get(path, accept="application/json").status == 401, path
    assert visitor.get("/healthz").status == 200
    assert visitor.sign_in("ann", "wrong").status == 403
    assert visitor.get("/", accept="*/*").status == 401
    assert visitor.sign_in("ann", PASSWORD).status == 303
    assert visitor.get("/").status == 200
    assert visitor.get("/live/series").status == 200


def test_s15_a_viewer_and_a_read_only_dashboard_change_nothing(app: Any, accounts: Accounts) -> None:
    app.send_task("echo", queue="celery")
    with served(app, Access(accounts=accounts, hosts=())) as server:
        viewer = Visitor(server.url)
        viewer.sign_in("vic", PASSWORD)
        page = viewer.get("/queue?name=celery")
        assert page.status == 200 and "Purge" not in page.text
        assert viewer.post("/queues/purge", {"token": page.token, "queue": "celery"}).status == 403
    with served(app, Access(accounts=accounts, hosts=(), read_only=True)) as server:
        operator = Visitor(server.url)
        operator.sign_in("ann", PASSWORD)
        page = operator.get("/queue?name=celery")
        assert "read-only" in page.text and "Purge" not in page.text
        assert operator.post("/queues/purge", {"token": page.token, "queue": "celery"}).status == 403
    assert app.broker.size("celery") == 1


def test_s15_every_post_route_is_for_operators(guarded: Server) -> None:
    viewer = Visitor(guarded.url)
    viewer.sign_in("vic", PASSWORD)
    token = viewer.get("/").token
    paths = {path for page in guarded.site.pages for method, path, _, _ in page._views if method == "POST"}
    assert len(paths) > 10
    for path in paths:
        assert viewer.post(path, {"token": token}).status == 403, path
        assert viewer.get(path).status == 405, path


def test_s15_a_token_acts_without_a_session_and_a_wrong_one_does_nothing(guarded: Server, app: Any) -> None:
    app.send_task("echo", queue="celery")
    robot = Visitor(guarded.url, authorization="Bearer robots-token")
    assert Visitor(guarded.url, authorization="Bearer wrong").get("/", accept="*/*").status == 401
    purged = robot.post("/queues/purge", {"queue": "celery"}, sec_fetch_site=None)
    assert purged.status == 303
    assert app.broker.size("celery") == 0
    assert [(each.who, each.action, each.target, each.count) for each in guarded.site.audit.entries()][:1] == [
        ("robot", "queues.purge", "celery", 1)
    ]


def test_s15_a_proxy_is_believed_from_its_address_alone(app: Any) -> None:
    access = Access(trusted_header="X-User", trusted_from=["192.0.2.0/24"], hosts=())
    with served(app, access) as server:
        assert Visitor(server.url, **{"x-user": "ann"}).get("/", accept="*/*").status == 401
    access = Access(trusted_header="X-User", trusted_from=["127.0.0.1"], hosts=())
    with served(app, access) as server:
        assert Visitor(server.url).get("/", accept="*/*").status == 401
        believed = Visitor(server.url, **{"x-user": "ann"}).get("/")
        assert believed.status == 200 and "viewer" in believed.text


def test_s15_guessing_is_slowed_down(guarded: Server) -> None:
    visitor = Visitor(guarded.url)
    statuses = [visitor.sign_in("ann", f"guess {number}").status for number in range(11)]
    assert statuses == [403] * 10 + [429]
    attempts = Attempts(most=2, remember=3)
    assert [attempts.begin(address, "ann") for address in "aaabcda"] == [True, True, False, True, True, True, True], (
        "the oldest is forgotten"
    )
    attempts = Attempts(most=1)
    assert attempts.begin("a", "ann") and not attempts.begin("a", "ann")
    attempts.take_back("a", "ann")
    attempts.take_back("a", "ann")
    assert attempts.begin("a", "ann") and not attempts.begin("a", "ann")


class Known(Accounts):
    """One account, and no hashing; counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__([])
        self.asked = 0
        self._lock = threading.Lock()

    def by_password(self, name: str, password: str) -> Account | None:
        """Return the account of ann."""
        with self._lock:
            self.asked += 1
        return Account(name, Role.OPERATOR, "") if (name, password) == ("ann", PASSWORD) else None


def test_s15_who_guesses_locks_out_nobody_else(app: Any) -> None:
    with served(app, Access(accounts=Known(), hosts=())) as server:
        stranger, ann = Visitor(server.url), Visitor(server.url)
        statuses = [stranger.sign_in("mallory", f"guess {number}").status for number in range(12)]
        assert statuses == [403] * 10 + [429] * 2
        # As often as she likes: what was right does not count.
        assert [ann.sign_in("ann", PASSWORD).status for _ in range(12)] == [303] * 12
        assert ann.get("/").status == 200


def test_s15_guessing_at_once_is_slowed_down_too(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Known()
    with served(app, Access(accounts=known, hosts=())) as server:
        visitor = Visitor(server.url)
        token = visitor.get("/login").token

        def guess(number: int) -> int:
            return visitor.post("/login", {"token": token, "name": "ann", "password": f"guess {number}"}).status

        monkeypatch.setattr(signin, "_PATIENCE", 0.01)
        assert signin._hashing.acquire(timeout=20) and signin._hashing.acquire(timeout=20)
        try:
            # Nobody looked at these, so they do not count.
            assert [guess(number) for number in range(12)] == [503] * 12
        finally:
            signin._hashing.release(2)
        assert known.asked == 0
        monkeypatch.setattr(signin, "_PATIENCE", 20.0)
        with ThreadPoolExecutor(40) as pool:
            statuses = list(pool.map(guess, range(40)))
        assert set(statuses) <= {403, 429, 503} and 0 < known.asked <= 10
        assert statuses.count(403) == known.asked


def test_s15_who_is_refused_pushes_nothing_out_of_the_audit_log(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="umbel.dashboard.audit")
    with served(app, Access(accounts=Known(), hosts=())) as server:
        ann, stranger = Visitor(server.url), Visitor(server.url)
        assert ann.sign_in("ann", PASSWORD).status == 303
        assert ann.post("/queues/purge", {"token": ann.get("/").token, "queue": "celery"}).status == 303
        token = stranger.get("/login").token
        for number in range(600):
            form = {"token": token, "name": f"mallory {number}", "password": "guess"}
            assert stranger.post("/login", form).status == 403
        kept = [(each.who, each.action, each.outcome) for each in server.site.audit.entries()]
    assert kept == [("ann", "queues.purge", "0 messages were discarded."), ("ann", "sign-in", "signed in")]
    assert any("sign-in 'mallory 599'" in line and "refused" in line for line in caplog.messages)


def test_s15_a_cookie_cannot_be_made_up(guarded: Server) -> None:
    visitor = Visitor(guarded.url)
    visitor.get("/login")
    kept = visitor.cookies["umbel_session"]
    body, _, mac = kept.partition(".")
    for made_up in (
        f"{body}x.{mac}",
        f"{body}.{'0' * 64}",
        "",
        ".",
        "é.é",
        Access().sessions.make("ann", role_of("operator")),
    ):
        visitor.cookies["umbel_session"] = made_up.encode().decode("latin-1")
        assert visitor.get("/", accept="*/*").status == 401, made_up
    cookie = next(
        line for line in Visitor(guarded.url).get("/login").headers.get_all("set-cookie") if "session" in line
    )
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie


# -- S16: no form of another site --------------------------------------------------------------------------------


def test_s16_forms_of_other_sites_are_refused(open_site: Server, app: Any) -> None:
    app.send_task("echo", queue="celery")
    visitor = Visitor(open_site.url)
    good = {"token": visitor.get("/queue?name=celery").token, "queue": "celery"}
    refused: list[tuple[dict[str, str], dict[str, str | None]]] = [
        ({"queue": "celery"}, {}),
        ({"queue": "celery", "token": "0" * 64}, {}),
        ({"queue": "celery", "token": Visitor(open_site.url).get("/queue?name=celery").token}, {}),
        (good, {"sec_fetch_site": "cross-site"}),
        (good, {"sec_fetch_site": "same-site"}),
        (good, {"sec_fetch_site": "none"}),
        (good, {"sec_fetch_site": None, "origin": "http://evil.example"}),
        (good, {"sec_fetch_site": None, "origin": "null"}),
        (good, {"origin": "http://evil.example"}),
        (good, {"origin": f"ftp://{visitor.host}"}),
    ]
    for form, headers in refused:
        assert visitor.post("/queues/purge", form, **headers).status == 403, (form, headers)
    assert visitor.post("/queues/purge", good, content_type="text/plain").status == 415
    assert visitor.post("/queues/purge", good, content_type="multipart/form-data; boundary=x").status == 415
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert visitor.ask(method, "/queues/purge").status == 405, method
    assert visitor.get("/queues/purge?queue=celery").status == 405
    assert app.broker.size("celery") == 1
    assert "access-control-allow-origin" not in visitor.get("/").headers
    assert visitor.post("/queues/purge", good, origin=f"http://{visitor.host}").status == 303
    assert app.broker.size("celery") == 0


# -- S17: no other name ------------------------------------------------------------------------------------------


def test_s17_other_host_names_are_refused(open_site: Server, app: Any, accounts: Accounts) -> None:
    visitor = Visitor(open_site.url)
    port = visitor.place[1]
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "192.0.2.7",
        "",
    ):
        assert visitor.get("/", host=host).status == 421, host
        assert visitor.get("/static/umbel.js", host=host).status == 421, host
    for host in (f"localhost:{port}", "localhost", f"127.0.0.1:{port}", "[::1]:5555", "LOCALHOST."):
        assert visitor.get("/", host=host).status == 200, host
    with served(app, Access(accounts=accounts, hosts=("dash.example.org",))) as server:
        named = Visitor(server.url)
        assert named.get("/login", host="dash.example.org").status == 200
        assert named.get("/login", host="192.0.2.7").status == 200
        assert named.get("/login", host="evil.example.org").status == 421


def test_sign_in_leads_nowhere_else() -> None:
    assert _is_ours("/dead?task=a")
    for path in ("//evil.example", "/\\evil.example", "https://evil.example", "javascript:alert(1)", "", "/\r\nx: y"):
        assert not _is_ours(path), path


# -- S19: what asks for too much gets little ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/dead?limit=1000000000", "/dead?limit=-1", "/dead?limit=x", "/dead?limit=٣", "/dead?task=" + "a" * 600,
        "/dead?since=nonsense", "/queue", "/queue?name=a&place=dead", "/queue?name=a&limit=0", "/worker",
        "/errors?limit=10000", "/errors?filter=" + "a" * 300, "/audit?limit=9999999999", "/?x=" + "a" * 9000,
    ],
)  # fmt: skip
def test_s19_what_is_too_much_is_refused(open_site: Server, path: str) -> None:
    from urllib.parse import quote

    assert Visitor(open_site.url).get(quote(path, safe="/?=&")).status == 400


def test_s19_large_forms_and_queries_are_refused(open_site: Server) -> None:
    visitor = Visitor(open_site.url)
    token = visitor.get("/queue?name=celery").token
    assert visitor.post("/queues/purge", {"token": token, "queue": "a" * (1 << 20)}).status == 413
    assert visitor.post("/dead/requeue", {"token": token, "id": ["x"] * 2001}).status == 400
    many = visitor.post("/dead/requeue", {"token": token, "id": ["x"] * 1500})
    assert many.status == 400 and "1000 is the most" in many.text
    assert visitor.ask("GET", "/?filter=" + "a" * 60_000).status == 400


def test_s19_paths_lead_to_no_other_file(open_site: Server) -> None:
    visitor = Visitor(open_site.url)
    for path in (
        "/static/../site.py",
        "/static/%2e%2e/site.py",
        "/static//etc/passwd",
        "/static/..%2fsite.py",
        "/static/",
    ):
        assert visitor.get(path).status == 404, path


# -- S20: streams ------------------------------------------------------------------------------------------------


def test_s20_streams_are_for_our_pages_and_counted(open_site: Server) -> None:
    visitor = Visitor(open_site.url)
    assert visitor.get("/live", sec_fetch_site="cross-site").status == 403
    open_site.site.streams._most = 2
    links = []
    try:
        for _ in range(2):
            link = http.client.HTTPConnection(*visitor.place, timeout=20)
            link.request("GET", "/live", headers={"host": visitor.host, "accept": "text/event-stream"})
            reply = link.getresponse()
            assert reply.status == 200 and reply.headers["content-type"].startswith("text/event-stream")
            assert reply.readline() == b"event: tick\n"
            links.append((link, reply))
        assert visitor.get("/live").status == 503
    finally:
        for link, reply in links:
            reply.close()
            link.close()
    deadline = time.monotonic() + 20
    while open_site.site.streams.open:
        assert time.monotonic() < deadline, "a browser that is gone still counts"
        time.sleep(0.05)


# -- what is written down ----------------------------------------------------------------------------------------


def test_refused_and_failed_actions_are_written_down_too(open_site: Server, app: Any) -> None:
    app.send_task("echo", queue="celery")
    visitor = Visitor(open_site.url)
    token = visitor.get("/queue?name=celery").token
    assert visitor.post("/queues/move", {"token": token, "queue": "celery", "to": "celery", "limit": "1"}).status == 400
    done = visitor.post("/queues/purge", {"token": token, "queue": "celery"})
    assert done.status == 303
    assert "1 message was discarded." in visitor.get("/queue?name=celery").text
    assert "1 message was discarded." not in visitor.get("/queue?name=celery").text, "said once"
    found = [(each.action, each.outcome, each.count) for each in open_site.site.audit.entries()]
    assert found == [
        ("queues.purge", "1 message was discarded.", 1),
        ("queues.move", "refused: They are in that queue already.", None),
    ]


def test_hidden_arguments_stay_hidden(app: Any) -> None:
    @app.task(name="pay", sensitive=("card",))
    def pay(order: int, card: str) -> None: ...

    pay.delay(17, card="4111-canary")
    with served(app) as server:
        page = Visitor(server.url).get("/queue?name=celery").text
    assert app.broker.size("celery", Place.READY) == 1
    assert "card=" in page and "***" in page and "4111-canary" not in page
