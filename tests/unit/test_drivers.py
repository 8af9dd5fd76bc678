"""From a URL to a driver, to a file, and to what may be shown of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from umbel import drivers
from umbel.brokers.memory import MemoryBroker
from umbel.exceptions import ImproperlyConfigured
from umbel.settings import Settings

DRIVER = """
from umbel.backends.memory import MemoryBackend
from umbel.brokers.memory import MemoryBroker


class Noted:
    def __init__(self, url, *, options=None, clock=None):
        super().__init__("memory://third", options=options, clock=clock)
        self.given = url, dict(options or {})


class Broker(Noted, MemoryBroker):
    pass


class Backend(Noted, MemoryBackend):
    pass
"""

POINTS = """
[umbel.brokers]
carrier-pigeon = pigeon_driver:Broker
sentinel-pigeon = pigeon_driver:Broker
needy = needy_driver:Broker

[umbel.backends]
carrier-pigeon = pigeon_driver:Backend
"""


@pytest.fixture
def pigeon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install a third party's driver."""
    info = tmp_path / "pigeon-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pigeon\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    (tmp_path / "pigeon_driver.py").write_text(DRIVER)
    (tmp_path / "needy_driver.py").write_text("import a_library_nobody_has\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("pigeon_driver", None)


# -- opening ---------------------------------------------------------------------------------------------------------


def test_a_scheme_names_its_driver() -> None:
    assert isinstance(drivers.open_broker("memory://here"), MemoryBroker)
    assert isinstance(drivers.open_broker("MEMORY://here"), MemoryBroker)


@pytest.mark.parametrize("nothing", [None, "", " ", "disabled", "disabled://", "Disabled"])
def test_results_can_be_disabled(nothing: str | None) -> None:
    assert drivers.open_backend(nothing) is None


@pytest.mark.parametrize("url", ["memory", "memory://", "cache+memory://"])
def test_celerys_short_names_of_backends_work(url: str) -> None:
    backend = drivers.open_backend(url)
    assert backend is not None
    assert type(backend).__name__ == "MemoryBackend"


@pytest.mark.usefixtures("pigeon")
def test_a_third_party_adds_a_driver_by_an_entry_point() -> None:
    broker = drivers.open_broker("Carrier-Pigeon://coop/1", options={"speed": 3}, app_name="shop")
    assert broker.given == ("carrier-pigeon://coop/1", {"speed": 3, "app_name": "shop"})  # type: ignore[attr-defined]
    backend = drivers.open_backend("carrier-pigeon://coop/1")
    assert type(backend).__name__ == "Backend"


@pytest.mark.usefixtures("pigeon")
def test_of_several_urls_the_driver_gets_the_first_and_learns_the_others() -> None:
    broker = drivers.open_broker("carrier-pigeon://a;carrier-pigeon://b; carrier-pigeon://c;")
    url, options = broker.given  # type: ignore[attr-defined]
    assert url == "carrier-pigeon://a"
    assert options == {"alternates": ("carrier-pigeon://b", "carrier-pigeon://c")}
    assert drivers.open_broker(["carrier-pigeon://x"]).given[0] == "carrier-pigeon://x"  # type: ignore[attr-defined]


@pytest.mark.usefixtures("pigeon")
def test_a_broken_installation_of_a_driver_is_not_called_a_missing_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match="a_library_nobody_has"):
        drivers.open_broker("needy://")


def test_a_missing_library_is_an_error_that_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(drivers._BROKERS, "lonely", drivers._Driver("lonely_driver:Broker", "lonely_library"))
    (tmp_path / "lonely_driver.py").write_text("import lonely_library\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImproperlyConfigured, match=r"lonely://.*pip install 'umbel\[lonely_library\]'"):
        drivers.open_broker("lonely://")


def test_a_scheme_that_comes_later_says_so() -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        drivers.open_broker("postgresql://guest:s3cret@localhost//")
    text = str(caught.value)
    known = "amqp, amqps, memory, pyamqp, redis, redis+socket, rediss, sentinel, sqlite"
    assert f"no broker for scheme 'postgresql'; known: {known}" in text
    assert "umbel[postgres]" in text
    assert "not available yet in this build" in text
    assert "s3cret" not in text


def test_an_unknown_scheme_names_the_nearest() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"no result backend for scheme 'reddis'; .*did you mean 'rediss?'"):
        drivers.open_backend("reddis://localhost")
    with pytest.raises(ImproperlyConfigured, match="use one of these"):
        drivers.open_broker("zeppelin://localhost")


@pytest.mark.parametrize("url", ["localhost:6379", "user:s3cret@localhost", "/tmp/queue.db"])
def test_a_url_without_a_scheme_says_how_to_write_one(url: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"has no scheme.*write it as scheme://") as caught:
        drivers.open_broker(url)
    assert "s3cret" not in str(caught.value)


def test_an_empty_url_is_an_error() -> None:
    with pytest.raises(ImproperlyConfigured, match="empty"):
        drivers.open_broker("")


# -- reading URLs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("redis://a", ["redis://a"]),
        ("redis://a;redis://b", ["redis://a", "redis://b"]),
        (" redis://a ; redis://b ; ", ["redis://a", "redis://b"]),
        (["redis://a", "redis://b;redis://c"], ["redis://a", "redis://b", "redis://c"]),
        ("redis://:pa;ss@a;redis://b", ["redis://:pa;ss@a", "redis://b"]),
        ("sentinel://a:1;b:2", ["sentinel://a:1;b:2"]),
        ("", []),
    ],
)
def test_split(url: str | list[str], parts: list[str]) -> None:
    assert drivers.split(url) == parts


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:p@h", "redis://:**@h"),
        ("redis://me@h/0", "redis://me@h/0"),
        ("amqp://u:p@h:5672//", "amqp://u:**@h:5672//"),
        ("redis://u:a@b@h:1/0", "redis://u:**@h:1/0"),
        ("redis://u:a/b?c#d@h/0", "redis://u:**@h/0"),
        ("redis://u:a;b@h/0", "redis://u:**@h/0"),
        ("redis+socket:///tmp/a@b.sock?password=x&db=1", "redis+socket:///tmp/a@b.sock?password=**&db=1"),
        ("redis+socket://:p@/tmp/r.sock", "redis+socket://:**@/tmp/r.sock"),
        ("sqlite:////home/me@work/a.db", "sqlite:////home/me@work/a.db"),
        ("redis://h:6379/0?token=a@b&x=1", "redis://h:6379/0?token=**&x=1"),
        ("redis://h:6379/0?client_name=a@b", "redis://h:6379/0?client_name=a@b"),
        ("redis://[::1]:6379/0?token=a@b", "redis://[::1]:6379/0?token=**"),
        ("redis://me:p@h/0?token=a@b&x=1", "redis://me:**@**&x=1"),
        ("redis://u:x&token=y@h/0", "redis://u:**@**"),
        ("redis://me:?x=y@h/0", "redis://me:**@h/0"),
        ("redis://h:6379/v@x", "redis://h:**@x"),
        ("redis://me:2024/secret@db:6379/0", "redis://me:**@db:6379/0"),
        ("redis://:2024?secret@db:6379/0", "redis://:**@db:6379/0"),
        ("amqp://me:2024/a/b@h:5672//", "amqp://me:**@h:5672//"),
        ("redis://h?ssl_keyfile=/k.pem&ssl_password=p", "redis://h?ssl_keyfile=/k.pem&ssl_password=**"),
        ("sentinel://:a@h:1;sentinel://:b@i:2/0?sentinel_password=c", None),
        ("sentinel://:a@h:1;:b@i:2", None),
        (["redis://:a@h", "redis://:b@i"], "redis://:**@h;redis://:**@i"),
        ("db+postgresql://u:p@h/d", "db+postgresql://u:**@h/d"),
        ("no url at all", "no url at all"),
        (None, "None"),
    ],
)
def test_mask(url: object, shown: str | None) -> None:
    masked = drivers.mask(url)
    if shown is not None:
        assert masked == shown
    else:
        assert not any(secret in masked for secret in (":a@", ":b@", "=c"))


# -- which URLs an app uses ------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("UMBEL_HOME", raising=False)
    for name in ("CELERY_BROKER_URL", "UMBEL_BROKER_URL", "CELERY_RESULT_BACKEND", "UMBEL_RESULT_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    package = tmp_path / "project" / "src" / "shop"
    package.mkdir(parents=True)
    (tmp_path / "project" / "pyproject.toml").touch()
    (package / "tasks.py").touch()
    return tmp_path / "project"


def test_the_default_file_lies_in_the_project(project: Path) -> None:
    module = str(project / "src" / "shop" / "tasks.py")
    assert drivers.default_url("shop", module) == f"sqlite:///{project}/.umbel/shop.db"
    assert drivers.default_url(None, module) == f"sqlite:///{project}/.umbel/tasks.db"
    assert drivers.default_url("__main__", module) == f"sqlite:///{project}/.umbel/tasks.db"
    (project / "src" / ".git").touch()
    assert drivers.default_url("shop", module) == f"sqlite:///{project}/src/.umbel/shop.db"
    assert not (project / ".umbel").exists()


def test_the_home_variable_wins(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "a #1?"))
    url = drivers.default_url("shop", str(project / "src" / "shop" / "tasks.py"))
    assert url == f"sqlite:///{tmp_path}/a%20%231%3F/shop.db"


@pytest.mark.skipif(sys.platform != "linux", reason="the state folder is another one there")
def test_without_a_project_it_lies_in_the_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UMBEL_HOME", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert drivers.default_url("shop", None) == f"sqlite:///{tmp_path}/umbel/shop.db"
    assert drivers.default_url(None, "<stdin>") == f"sqlite:///{tmp_path}/umbel/umbel.db"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert drivers.default_url("shop", None) == f"sqlite:///{tmp_path}/.local/state/umbel/shop.db"


def test_the_working_directory_does_not_matter(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = str(project / "src" / "shop" / "tasks.py")
    before = drivers.default_url("shop", module)
    monkeypatch.chdir("/")
    assert drivers.default_url("shop", module) == before


@pytest.mark.parametrize(
    "name", ["a/b", "../../etc/passwd", "", ".hidden", "con", "NUL.txt", "x" * 500, "ünïcode", "a b"]
)
def test_a_file_name_is_safe_and_its_own(name: str) -> None:
    safe = drivers.safe_name(name)
    assert safe == drivers.safe_name(name)
    assert safe != drivers.safe_name(name + "_")
    assert "/" not in safe
    assert safe.isascii()
    assert safe
    assert not safe.startswith(".")
    assert len(safe) < 100
    assert safe.lower() not in ("con", "nul.txt")


def test_without_a_broker_one_file_holds_all(project: Path) -> None:
    module = str(project / "src" / "shop" / "tasks.py")
    file = f"sqlite:///{project}/.umbel/shop.db"
    assert drivers.choose(Settings(), "shop", module) == (file, file, file, True)
    chosen = drivers.choose(Settings({"result_backend": "redis://r"}), "shop", module)
    assert chosen == (file, file, "redis://r", True)


def test_with_a_broker_and_no_backend_results_are_disabled(project: Path) -> None:
    conf = Settings({"broker_url": "redis://a"})
    assert drivers.choose(conf, "shop", str(project)) == ("redis://a", "redis://a", None, False)
    conf.update(broker_read_url="redis://b", result_backend="redis://c")
    assert drivers.choose(conf, "shop", None) == ("redis://b", "redis://a", "redis://c", False)
