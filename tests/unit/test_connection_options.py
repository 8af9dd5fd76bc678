"""What drivers are told of the settings, and that the lists of their options are true."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import umbel
from umbel import Umbel, drivers
from umbel.brokers.rabbitmq.address import _TLS
from umbel.brokers.redis import RedisBroker
from umbel.brokers.redis.client import _FLOATS, _PASSED_ON
from umbel.connection_options import SETTINGS, backend_options, broker_options
from umbel.exceptions import ImproperlyConfigured
from umbel.settings import Settings

PACKAGE = Path(umbel.__file__).parent
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "connections.md").read_text(encoding="utf-8")


def asked_for(*paths: Path) -> Iterator[str]:
    """Yield the names that are looked up in ``options`` or in what was made of them."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="options" | "given" | "extras"), attr="get"),
                    args=[ast.Constant(value=str(name)), *_],
                ):
                    yield name
                case ast.Call(
                    func=ast.Attribute(value=ast.Attribute(attr="extras" | "options"), attr="get"),
                    args=[ast.Constant(value=str(name)), *_],
                ):
                    yield name


def test_the_lists_of_options_are_what_the_drivers_read() -> None:
    internal = {"alternates", "failover_strategy", *SETTINGS}
    redis = {*asked_for(*(PACKAGE / "brokers" / "redis").glob("*.py")), *_PASSED_ON, *_FLOATS} - internal
    assert redis == drivers._BROKERS["redis"].reads
    sqlite = {*asked_for(*(PACKAGE / "brokers" / "sqlite").glob("*.py"))} - internal
    assert sqlite == drivers._BROKERS["sqlite"].reads
    assert {*asked_for(*(PACKAGE / "brokers").glob("memory*.py"))} - internal == drivers._BROKERS["memory"].reads
    results = {*asked_for(PACKAGE / "backends" / "redis.py"), *asked_for(PACKAGE / "brokers" / "redis" / "client.py")}
    assert (results | {*_PASSED_ON, *_FLOATS}) - internal == drivers._BACKENDS["redis"].reads
    folder = PACKAGE / "brokers" / "rabbitmq"
    tls = {name for name in _TLS if name.startswith("ssl_")} | {"ssl_cert_reqs"}
    rabbitmq = {*asked_for(*folder.glob("*.py")), *tls} - internal - {"find_queue"}
    assert rabbitmq == drivers._BROKERS["amqp"].reads
    # Its connections have heartbeats of their own.
    assert {*asked_for(folder / "address.py"), *tls} - {"heartbeat"} == drivers._BACKENDS["rpc"].reads


def test_the_page_names_every_option() -> None:
    for driver in {*drivers._BROKERS.values(), *drivers._BACKENDS.values()}:
        for name in driver.reads or ():
            assert f"`{name}`" in PAGE, name


def test_a_broker_is_told_its_settings() -> None:
    conf = Settings({"lease_ttl": 60, "publish_dedupe": 0, "publish_timeout": 3, "broker_connection_timeout": None})
    options = broker_options(conf)
    assert {name: options[name] for name in SETTINGS} == {name: conf[name] for name in SETTINGS}
    assert options["publish_dedupe"] == 0
    assert "socket_connect_timeout" not in options
    assert "ssl" not in options
    conf.update(broker_connection_timeout=7, broker_use_ssl={"ssl_ca_certs": "x"})
    assert broker_options(conf)["socket_connect_timeout"] == 7
    conf.broker_transport_options = {"socket_connect_timeout": 1, "ssl": False}
    assert broker_options(conf)["socket_connect_timeout"] == 1
    assert broker_options(conf)["ssl"] is False


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_no_transport_option(name: str) -> None:
    conf = Settings({"broker_transport_options": {name: 4}})
    with pytest.raises(ImproperlyConfigured, match=rf"write {name} = 4, not broker_transport_options"):
        broker_options(conf)


def test_celerys_settings_for_redis_results_are_used() -> None:
    conf = Settings({
        "redis_socket_timeout": 9, "redis_socket_connect_timeout": 3, "redis_socket_keepalive": True,
        "redis_username": "ann", "redis_password": "hush", "redis_db": 4, "redis_backend_use_ssl": {"ssl_ciphers": "x"},
    })  # fmt: skip
    options = backend_options(conf, "redis://h")
    assert options == {
        "socket_timeout": 9, "socket_connect_timeout": 3, "socket_keepalive": True, "username": "ann",
        "password": "hush", "db": 4, "ssl": {"ssl_ciphers": "x"},
    }  # fmt: skip
    conf.result_backend_transport_options = {"socket_timeout": 1, "global_keyprefix": "p"}
    assert backend_options(conf, "SENTINEL://h")["socket_timeout"] == 1
    assert backend_options(conf, "sqlite:///x") == {"socket_timeout": 1, "global_keyprefix": "p"}
    assert backend_options(Settings(), "redis://h") == {"socket_timeout": 5.0}


@pytest.fixture
def app() -> Iterator[Any]:
    made = Umbel("shop", set_as_current=False)
    yield made
    made.close()


def test_what_the_url_says_wins(app: Any) -> None:
    app.conf.update(broker_url="memory://", result_backend="redis://:here@h/3?socket_timeout=2")
    app.conf.update(redis_password="there", redis_db=5, redis_username="ann")
    backend = app.make_backend()
    (target,) = backend._source.targets
    assert (target.username, target.password, target.db) == ("ann", "here", 3)
    assert backend._source.socket_timeout == 2.0
    app.conf.result_backend = "redis://h"
    backend = app.make_backend()
    (target,) = backend._source.targets
    assert (target.password, target.db, backend._source.socket_timeout) == ("there", 5, 5.0)


@pytest.mark.parametrize("value", ["soon", -1, "inf", [5]])
def test_a_timeout_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="socket_timeout must be a number of seconds above 0"):
        RedisBroker("redis://h", options={"socket_timeout": value})


def test_an_app_gives_its_broker_the_whole_list(app: Any) -> None:
    app.conf.update(broker_url="redis://a/2;redis://:p;w@b/2", broker_failover_strategy="shuffle")
    source = app.make_broker()._source
    assert [(target.host, target.password) for target in source.targets] == [("a", None), ("b", "p;w")]
    app.conf.broker_url = ["redis://a/1", "redis://b/2"]
    with pytest.raises(ImproperlyConfigured, match=r"same database, not a:6379/1, b:6379/2"):
        app.make_broker()
    app.conf.broker_url = ["redis://a/1", "amqp://b//"]
    with pytest.raises(ImproperlyConfigured, match=r"amqp:// is not a Redis URL scheme"):
        app.make_broker()
    app.conf.update(broker_url="redis://a", broker_failover_strategy="always")
    with pytest.raises(ImproperlyConfigured, match="broker_failover_strategy is 'always'; use round-robin or shuffle"):
        app.make_broker()


@pytest.mark.parametrize("url", ["sqlite:///a.db;sqlite:///b.db", "memory://a;memory://b"])
def test_a_list_that_could_not_work_is_refused(url: str) -> None:
    scheme = url.partition(":")[0]
    with pytest.raises(ImproperlyConfigured, match=f"the broker {scheme}:// takes one URL, not a list"):
        drivers.open_broker(url)
    with pytest.raises(ImproperlyConfigured, match=f"the result backend {scheme}:// takes one URL"):
        drivers.open_backend(url)


def test_results_in_redis_take_one_url() -> None:
    with pytest.raises(ImproperlyConfigured, match="use sentinel://"):
        drivers.open_backend("redis://a;redis://b")
    assert drivers.open_backend("sentinel://a;sentinel://b", options={"master_name": "m"}) is not None
