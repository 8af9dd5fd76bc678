"""The configuration of one app.

A value is looked for in this order; the first that has it wins, whatever was said first::

    environment     CELERY_BROKER_URL, CELERY_RESULT_BACKEND, … and their UMBEL_ forms
    changes         the constructor, ``conf.x = …``, ``conf.update()``
    defaults        :meth:`Settings.add_defaults`, the latest first
    source          :meth:`Settings.load_object`, the last one
    fallbacks       :meth:`Settings.setdefault`
    the table       ``setting_rows.py``
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from datetime import timedelta
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs, quote

from umbel.connection_options import unread_options
from umbel.drivers import mask, split
from umbel.exceptions import ImproperlyConfigured
from umbel.serialization import refuse_unsafe
from umbel.setting_names import canonical, mistake
from umbel.setting_rows import ROWS, Setting
from umbel.setting_sources import Layer, find, read
from umbel.signing import keyring_of

__all__ = ["ROWS", "Setting", "Settings", "censor", "check"]

#: These win over everything, so that one image runs in many places.
ENVIRONMENT = {
    name: (f"UMBEL_{name.upper()}", f"CELERY_{name.upper()}")
    for name in ("broker_url", "broker_read_url", "broker_write_url", "result_backend")
}

_HIDDEN = re.compile("API|TOKEN|KEY|SECRET|PASS|SIGNATURE|DATABASE|PROFANITIES_LIST|BEAT_DBURI", re.IGNORECASE)
_MASK = "********"


class Settings(MutableMapping[str, Any]):
    """All settings, by attribute and by item, under their new and their old names.

    Sources are read when a value is first asked for, so configuring late or early gives the same result. Safe to
    share between threads; changes are meant for start-up, and code that runs may have read the former value.
    Keys that are not ours are kept and read as they were given.
    """

    _stack: _Stack

    def __init__(
        self,
        changes: Mapping[str, Any] | None = None,
        *,
        namespace: str | None = None,
        strict: bool = True,
        on_load: Callable[[Settings], None] | None = None,
    ) -> None:
        """Begin with these changes.

        :param strict: Unknown names that were surely meant to be ours are errors; else they are warnings.
        :param on_load: Called each time that a source was read, before the value asked for is returned.
        """
        # What was read once is kept as a plain attribute: the next reading costs as much as any attribute's.
        stack = _Stack(namespace, strict, self.__dict__)
        stack.on_load = None if on_load is None else lambda: on_load(self)
        object.__setattr__(self, "_stack", stack)
        if changes:
            stack.put(changes, "the constructor")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self._stack.value(name)
        except KeyError:
            advice = mistake(name)
            raise AttributeError(f"no setting {name!r}" + (f"; {advice}" if advice else "")) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self._stack.put({name: value}, "app.conf")

    def __getitem__(self, name: str) -> Any:
        return self._stack.value(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self._stack.put({name: value}, "app.conf")

    def first(self, *names: str) -> Any:
        """Return the first of these settings that is not None, or None; what extensions of Celery ask by."""
        return next((value for name in names if (value := self.get(name)) is not None), None)

    def __delitem__(self, name: str) -> None:
        """Take back an explicit change; what the sources say shows again."""
        self._stack.drop(name)

    def __iter__(self) -> Iterator[str]:
        yield from ROWS
        yield from self._stack.foreign_names()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Change several settings; all of them or, if one is wrong, none. ``None`` is an empty mapping."""
        given: dict[str, Any] = {}
        for arg in args:
            given.update(arg or {})
        self._stack.put({**given, **kwargs}, "conf.update()")

    def setdefault(self, name: str, default: Any = None) -> Any:
        """Use a value unless a change or a source, also one that comes later, says otherwise; return what holds."""
        self._stack.fall_back({name: default})
        return self[name]

    def add_defaults(self, source: Any) -> None:
        """Add defaults that win over the configuration source; a callable is called when they are first needed."""
        self._stack.add(source)

    def load_object(
        self, source: Any, *, namespace: str | None = None, silent: bool = False, force: bool = False
    ) -> None:
        """Take the configuration from a module's name, ``module:attribute``, an object, a class or a dict.

        It is read at the first need, or now with ``force``, and replaces the one before it; explicit changes stay.
        Reading raises :exc:`ImproperlyConfigured` if it cannot be found, unless ``silent``.
        """
        self._stack.load(source, namespace, silent)
        if force:
            self._stack.resolve()

    def load_envvar(self, variable: str, *, silent: bool = False, force: bool = False) -> bool:
        """As :meth:`load_object`, with the name of the module that an environment variable holds."""
        module = os.environ.get(variable)
        if not module:
            if silent:
                return False
            raise ImproperlyConfigured(
                f"the environment variable {variable!r} is not set; set it to the name of a configuration module"
            )
        self.load_object(module, silent=silent, force=force)
        return True

    @property
    def loaded_from(self) -> dict[str, Any]:
        """The arguments of the last :meth:`load_object`, a module by its name; empty if there is no source."""
        return dict(self._stack.loaded_from)

    @property
    def changes(self) -> dict[str, Any]:
        """What was set explicitly, as a copy."""
        changes = self._stack.changes
        return {**changes.foreign, **changes.values}

    @property
    def version(self) -> int:
        """A number that grows with every change; equal numbers mean equal settings."""
        return self._stack.version

    def without_defaults(self) -> dict[str, Any]:
        """Return the settings that were given anywhere, and the explicit changes that are not ours."""
        given = {name: self[name] for name in ROWS if name in self._stack.given() or _in_environment(name)}
        return given | dict(self._stack.changes.foreign)

    def table(self, with_defaults: bool = False, censored: bool = True) -> dict[str, Any]:
        """Return names and values for people to read; passwords are hidden unless ``censored`` is false."""
        # Keys that are not ours stay out: a report is posted in public, and nobody knows what they hold.
        names = ROWS if with_defaults else [name for name in self.without_defaults() if name in ROWS]
        shown = {name: self[name] for name in names}
        return censor(shown) if censored else shown

    def humanize(self, with_defaults: bool = False, censored: bool = True) -> str:
        """Return :meth:`table` as text, one setting a line."""
        from pprint import pformat  # slow to import, and needed for reports only

        shown = self.table(with_defaults, censored)
        return "\n".join(f"{name}: {pformat(value, width=50)}" for name, value in shown.items())

    def idle(self) -> list[str]:
        """Return the settings that were given a value of their own and do nothing in this build.

        So are transport options that the driver does not read: ``broker_transport_options.visibility_timeout``.
        """
        given = self._stack.given()
        idle = [name for name in given if not ROWS[name].effect and self[name] != ROWS[name].default]
        return sorted([*idle, *unread_options(self)])

    def seconds(self, name: str) -> float | None:
        """Return a duration as a number, also where it was given as a timedelta."""
        value = self[name]
        return value.total_seconds() if isinstance(value, timedelta) else value


def check(settings: Mapping[str, Any]) -> None:
    """Refuse settings that contradict each other. For whoever starts a worker: settings come one by one.

    Raises :exc:`ImproperlyConfigured`, saying which and what to write instead.
    """
    ttl, heartbeat = settings["lease_ttl"], settings["lease_heartbeat"]
    if ttl < 3 * heartbeat:
        raise ImproperlyConfigured(
            f"lease_ttl ({ttl}) must be at least three times lease_heartbeat ({heartbeat}), or one late renewal loses "
            f"a worker's tasks; set lease_ttl to {3 * heartbeat} or more"
        )
    timeout = _socket_timeout(settings)
    if timeout >= heartbeat:
        raise ImproperlyConfigured(
            f"the broker's socket_timeout ({timeout:g}) must be less than lease_heartbeat ({heartbeat:g}), or one "
            f"answer that does not come takes the time of the next renewal; lower it in broker_transport_options or "
            "in the URL, or raise lease_heartbeat and lease_ttl"
        )
    soft, hard = settings["task_soft_time_limit"], settings["task_time_limit"]
    if soft and hard and soft > hard:
        raise ImproperlyConfigured(
            f"task_soft_time_limit ({soft:g}) must not be more than task_time_limit ({hard:g}), or no task is ever "
            "asked to end before it is killed; lower the one or raise the other"
        )
    for name in ("task_serializer", "result_serializer", "event_serializer"):
        refuse_unsafe(settings[name], settings, name)
    for name in ("accept_content", "result_accept_content"):
        for each in settings[name] or ():
            refuse_unsafe(each, settings, name)
    keyring_of(settings)


def _socket_timeout(settings: Mapping[str, Any]) -> float:
    """Return the longest that somebody wrote, or 0; what is no number is for the driver to refuse."""
    given: list[Any] = [(settings["broker_transport_options"] or {}).get("socket_timeout")]
    for url in split(settings["broker_read_url"] or ""):
        given += parse_qs(url.partition("?")[2]).get("socket_timeout", [])
    found = 0.0
    for value in given:
        with contextlib.suppress(TypeError, ValueError):
            found = max(found, float(value))
    return found


def censor(value: Any, name: str = "") -> Any:
    """Return a value, or a mapping with all it holds, as it may be shown."""
    if isinstance(value, Mapping):
        return {key: censor(item, str(key)) for key, item in value.items()}
    if value is not None and _HIDDEN.search(name):
        return _MASK
    if isinstance(value, str):
        return mask(value, hidden=_MASK)
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(censor(item) for item in value)
    return value


def _in_environment(name: str) -> bool:
    return any(os.environ.get(variable) for variable in ENVIRONMENT.get(name, ()))


class _Stack:
    """The layers under one :class:`Settings`, and the lock that guards them."""

    def __init__(self, namespace: str | None, strict: bool, cache: dict[str, Any]) -> None:
        self.lock = threading.RLock()
        self.version = 0
        self.changes = Layer()
        self.on_load: Callable[[], None] | None = None
        self.loaded_from: dict[str, Any] = {}
        self._namespace = namespace
        self._strict = strict
        self._cache = cache
        self._defaults: list[Layer] = []
        self._source = Layer()
        self._fallbacks = Layer()
        self._fresh = Layer()  # copies of mutable defaults, so that changing one in place lasts
        self._pending: list[Callable[[], None]] = []
        self._pending_source: Callable[[], None] | None = None
        self._resolving = False

    # -- writing --

    def put(self, given: Mapping[str, Any], where: str) -> None:
        layer = self._read(given, where)
        with self.lock:
            self.changes.values.update(layer.values)
            self.changes.foreign = {**self.changes.foreign, **_foreign(layer, self._namespace)}
            self._changed()

    def fall_back(self, given: Mapping[str, Any]) -> None:
        layer = self._read(given, "conf.setdefault()")
        with self.lock:
            self._fallbacks.values = layer.values | self._fallbacks.values
            self._fallbacks.foreign = {**_foreign(layer, self._namespace), **self._fallbacks.foreign}
            self._changed()

    def drop(self, name: str) -> None:
        with self.lock:
            setting = canonical(name, self._namespace)
            if setting is not None:
                del self.changes.values[setting]
            else:
                foreign = dict(self.changes.foreign)
                del foreign[name]
                self.changes.foreign = foreign
            self._changed()

    def add(self, source: Any) -> None:
        def load() -> None:
            given = source() if callable(source) and not isinstance(source, Mapping) else source
            self._defaults.insert(0, self._read(given, "conf.add_defaults()"))

        with self.lock:
            self._pending.append(load)
            self._changed()

    def load(self, source: Any, namespace: str | None, silent: bool) -> None:
        def load() -> None:
            found, where = find(source, silent=silent)
            self._source = self._read(found, where, unmixed=True)

        with self.lock:
            self._namespace = namespace or self._namespace
            name = source.__name__ if isinstance(source, ModuleType) else source
            self.loaded_from = {"source": name, "namespace": self._namespace, "silent": silent}
            self._pending_source = load
            self._changed()

    def _read(self, given: Any, where: str, *, unmixed: bool = False) -> Layer:
        return read(given, where=where, namespace=self._namespace, strict=self._strict, unmixed=unmixed)

    def _changed(self) -> None:
        self.version += 1
        for name in [name for name in self._cache if name in ROWS]:
            del self._cache[name]

    # -- reading --

    def resolve(self) -> None:
        """Read what was announced. A source that cannot be read stays announced, and each reading says why."""
        with self.lock:
            # A configuration module may import tasks, which read settings: they see the layers that are there.
            if self._resolving or not (self._pending or self._pending_source):
                return
            self._resolving = True
            try:
                while self._pending_source or self._pending:
                    if self._pending_source:
                        load = self._pending_source
                        load()
                        # Unless the module that was just imported announced another one.
                        self._pending_source = None if self._pending_source is load else self._pending_source
                    else:
                        self._pending[0]()
                        del self._pending[0]
            finally:
                self._resolving = False
                self._changed()
            if self.on_load is not None:
                self.on_load()

    def value(self, name: str) -> Any:
        setting = canonical(name, self._namespace)
        with self.lock:
            self.resolve()
            if setting is None:
                return self._foreign_value(name)
            value = self._from_environment(setting)
            if value is None:
                value = self._stored(setting)
            derive = _DERIVED.get(setting)
            if derive is not None:
                value = derive(self, value)
            if name == setting and setting not in ENVIRONMENT and not self._resolving:
                self._cache[setting] = value
            return value

    def _stored(self, setting: str) -> Any:
        for layer in self._layers():
            if setting in layer.values:
                return layer.values[setting]
        default = ROWS[setting].default
        if isinstance(default, (dict, list)):
            return self._fresh.values.setdefault(setting, copy.deepcopy(default))
        return default

    def _foreign_value(self, name: str) -> Any:
        names = [name] if not self._namespace else [f"{self._namespace.rstrip('_')}_{name}".upper(), name]
        for layer in self._layers():
            for key in names:
                if key in layer.foreign:
                    return layer.foreign[key]
        raise KeyError(name)

    @staticmethod
    def _from_environment(setting: str) -> str | None:
        for variable in ENVIRONMENT.get(setting, ()):
            value = os.environ.get(variable)
            if value:
                return value
        return None

    def _layers(self) -> list[Layer]:
        return [self.changes, *self._defaults, self._source, self._fallbacks, self._fresh]

    def given(self) -> set[str]:
        """Return the names of our settings that some layer sets."""
        with self.lock:
            self.resolve()
            fresh = {name for name, value in self._fresh.values.items() if value != ROWS[name].default}
            return fresh.union(*(layer.values for layer in self._layers()[:-1]))

    def foreign_names(self) -> list[str]:
        with self.lock:
            self.resolve()
            names = dict.fromkeys(name for layer in self._layers() for name in layer.foreign if isinstance(name, str))
            return [name for name in names if canonical(name, self._namespace) is None]


def _foreign(layer: Layer, namespace: str | None) -> dict[str, Any]:
    return {name: value for name, value in layer.foreign.items() if canonical(str(name), namespace) is None}


# -- values that follow from others ----------------------------------------------------------------------------------


def _broker_url(stack: _Stack, value: Any) -> Any:
    if value:
        return value
    host = stack.value("broker_host")
    if not host or "://" in host:
        return host or value
    scheme = stack.value("broker_transport") or "amqp"
    return _url(stack, str(scheme), host, ("broker_user", "broker_password", "broker_port", "broker_vhost"))


def _result_backend(stack: _Stack, value: Any) -> Any:
    if value not in ("redis", "rediss") or not stack.value("redis_host"):
        return value
    login = ("redis_username", "redis_password", "redis_port", "redis_db")
    return _url(stack, value, stack.value("redis_host"), login)


def _url(stack: _Stack, scheme: str, host: str, names: Sequence[str]) -> str:
    user, password, port, path = (stack.value(name) for name in names)
    # Unescaped, a "/" or "@" in a password would end the host.
    login = quote(user or "", safe="") + (f":{quote(password, safe='')}" if password else "")
    address = f"{login}@{host}" if login else host
    return f"{scheme}://{address}" + (f":{port}" if port else "") + ("" if path is None else f"/{path}")


def _time_zone(stack: _Stack, value: Any) -> Any:
    if value is None:
        try:
            return stack.value("TIME_ZONE")  # Django's
        except KeyError:
            return None
    return value


def _or(other: str) -> Callable[[_Stack, Any], Any]:
    return lambda stack, value: value or stack.value(other)


_DERIVED: dict[str, Callable[[_Stack, Any], Any]] = {
    "broker_url": _broker_url,
    "broker_read_url": _or("broker_url"),
    "broker_write_url": _or("broker_url"),
    "result_backend": _result_backend,
    "task_default_exchange": _or("task_default_queue"),
    "task_default_routing_key": _or("task_default_queue"),
    "timezone": _time_zone,
}
