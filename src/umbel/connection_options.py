"""From settings to the options that a driver is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from umbel import drivers
from umbel.exceptions import ImproperlyConfigured

#: Settings that every broker driver gets as options, under their own names.
SETTINGS: Final = (
    "lease_ttl", "lease_heartbeat", "max_deliveries", "redelivery_backoff", "publish_timeout", "publish_dedupe",
)  # fmt: skip
# Celery's settings for Redis results, and what the driver calls them. A URL and the transport options win.
_REDIS_RESULTS: Final = {
    "redis_socket_timeout": "socket_timeout",
    "redis_socket_connect_timeout": "socket_connect_timeout",
    "redis_socket_keepalive": "socket_keepalive",
    "redis_username": "username",
    "redis_password": "password",
    "redis_db": "db",
    "redis_backend_use_ssl": "ssl",
}
# What only RabbitMQ's driver reads.
_AMQP: Final = {
    "broker_heartbeat": "heartbeat",
    "broker_login_method": "login_method",
    "broker_native_delayed_delivery_queue_type": "delay_queue_type",
}
# What a backend that sends results has to know of the broker, whose server it uses.
_RPC_RESULTS: Final = {
    "broker_write_url": "broker_url",
    "broker_use_ssl": "ssl",
    "broker_login_method": "login_method",
    "broker_connection_timeout": "socket_connect_timeout",
    "publish_timeout": "publish_timeout",
    "result_serializer": "serializer",
    "result_persistent": "persistent",
}
_REDIS: Final = ("redis", "rediss", "redis+socket", "sentinel")


def broker_options(conf: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the broker's driver.

    Raises :exc:`ImproperlyConfigured` where a setting is given as a transport option: it would have two values.
    """
    given = conf["broker_transport_options"] or {}
    for name in SETTINGS:
        if name in given:
            raise ImproperlyConfigured(
                f"{name} is a setting of its own: write {name} = {given[name]!r}, not broker_transport_options"
            )
    options: dict[str, Any] = {name: conf[name] for name in SETTINGS}
    if conf["broker_connection_timeout"]:
        options["socket_connect_timeout"] = conf["broker_connection_timeout"]
    if conf["broker_use_ssl"]:
        options["ssl"] = conf["broker_use_ssl"]
    options |= {option: conf[name] for name, option in _AMQP.items() if conf[name] is not None}
    strategy = drivers.failover(conf["broker_failover_strategy"])
    return options | {"failover_strategy": strategy, **given}


def backend_options(conf: Mapping[str, Any], url: Any) -> dict[str, Any]:
    """Return the options of the result backend's driver."""
    options: dict[str, Any] = {}
    if isinstance(url, str) and url.partition(":")[0].lower() in _REDIS:
        options = {option: conf[name] for name, option in _REDIS_RESULTS.items() if conf[name]}
    elif drivers.sends_results(url):
        options = {option: conf[name] for name, option in _RPC_RESULTS.items() if conf[name] is not None}
        options["expires"] = _seconds(conf["result_expires"])
    return options | dict(conf["result_backend_transport_options"] or {})


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    return float(value.total_seconds() if hasattr(value, "total_seconds") else value) or None


def unread_options(conf: Mapping[str, Any]) -> list[str]:
    """Return the transport options, such as ``broker_transport_options.visibility_timeout``, that do nothing."""
    found = []
    for setting, url, results in (
        ("broker_transport_options", conf["broker_write_url"] or "sqlite://", False),
        ("result_backend_transport_options", conf["result_backend"], True),
    ):
        names = drivers.unread(url, conf[setting] or {}, results=results)
        found += [f"{setting}.{name}" for name in names]
    return found
