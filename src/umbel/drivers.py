"""From a URL to a driver: which class serves which scheme, where the default file is, how a URL is shown.

The only module that knows the names of drivers, and it imports one when its scheme is asked for.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import itertools
import os
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import quote

from umbel.clock import SYSTEM_CLOCK
from umbel.exceptions import ImproperlyConfigured
from umbel.interfaces import Broker, Clock, ResultBackend

BROKER_GROUP = "umbel.brokers"
BACKEND_GROUP = "umbel.backends"


class _Driver(NamedTuple):
    target: str  # "module:Class"
    extra: str = ""  # what to install
    library: str = ""  # what that brings, if it has another name
    one_url: str = ""  # why it takes no list of URLs
    reads: frozenset[str] | None = None  # the transport options that do something; None: nobody knows
    sends: bool = False  # results go to their callers instead of into a store


# Options of users alone: those that are settings too are always given, and read under the setting's name.
_REDIS_CONNECTION = frozenset({
    "client_name", "credential_provider", "db", "master_name", "password", "sentinel_kwargs", "socket_connect_timeout",
    "socket_keepalive", "socket_keepalive_options", "socket_timeout", "ssl", "ssl_ca_certs", "ssl_ca_data",
    "ssl_ca_path", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname", "ssl_ciphers", "ssl_keyfile",
    "ssl_password", "username",
})  # fmt: skip
_REDIS_QUEUES = {"dead_letters", "fanout_patterns", "fanout_prefix", "global_keyprefix", "priority_steps", "sep"}
_SQLITE = frozenset({"network", "socket_timeout", "synchronous"})
_ONE_FILE = "there is one file, and nothing to fail over to"
_ONE_PROCESS = "it lives in this process"

_REDIS = _Driver("umbel.brokers.redis:RedisBroker", "redis", reads=_REDIS_CONNECTION | _REDIS_QUEUES)
_RABBIT_CONNECTION = frozenset({
    "connect_timeout", "login_method", "socket_connect_timeout", "ssl", "ssl_ca_certs", "ssl_cert_reqs",
    "ssl_certfile", "ssl_ciphers", "ssl_keyfile",
})  # fmt: skip
_RABBIT_QUEUES = {"consumer_timeout", "dead_letters", "delay_queue_type", "heartbeat"}
_RABBIT = _Driver(
    "umbel.brokers.rabbitmq.broker:RabbitBroker", "rabbitmq", library="amqp", reads=_RABBIT_CONNECTION | _RABBIT_QUEUES
)
_BROKERS = {
    "memory": _Driver("umbel.brokers.memory:MemoryBroker", one_url=_ONE_PROCESS, reads=frozenset()),
    "sqlite": _Driver("umbel.brokers.sqlite:SqliteBroker", one_url=_ONE_FILE, reads=_SQLITE),
    **dict.fromkeys(("redis", "rediss", "redis+socket", "sentinel"), _REDIS),
    **dict.fromkeys(("amqp", "amqps", "pyamqp"), _RABBIT),
}
_REDIS_RESULTS = _Driver(
    "umbel.backends.redis:RedisBackend",
    "redis",
    one_url="every client must look where the worker stored; for failover use sentinel://",
    reads=_REDIS_CONNECTION | {"global_keyprefix"},
)
_BACKENDS = {
    "memory": _Driver("umbel.backends.memory:MemoryBackend", one_url=_ONE_PROCESS, reads=frozenset()),
    "sqlite": _Driver("umbel.backends.sqlite:SqliteBackend", one_url=_ONE_FILE, reads=_SQLITE),
    **dict.fromkeys(("redis", "rediss", "redis+socket", "sentinel"), _REDIS_RESULTS),
    "rpc": _Driver(
        "umbel.backends.rabbitmq_rpc:RpcBackend",
        "rabbitmq",
        library="amqp",
        one_url="results are sent where the caller listens",
        reads=_RABBIT_CONNECTION,
        sends=True,
    ),
}
# Celery's other names for the same things.
_ALIASES = {"socket": "redis+socket", "cache+memory": "memory", "librabbitmq": "pyamqp"}
_PLANNED = {
    "PostgreSQL, as the extra umbel[postgres],": ("postgresql", "postgres", "db+postgresql"),
}


# Of django-celery-results; for others it must be installed to be known.
_DJANGO = ("django-db", "django-cache")


class _Kind(NamedTuple):
    noun: str
    group: str  # of entry points, where third parties add theirs
    known: Mapping[str, _Driver]


_BROKER = _Kind("broker", BROKER_GROUP, _BROKERS)
_BACKEND = _Kind("result backend", BACKEND_GROUP, _BACKENDS)
_DISABLED = frozenset({"disabled", "disabled://"})

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
# A ";" inside a password is no separator: one that separates is followed by the next scheme.
_SEPARATOR = re.compile(r";\s*(?=[A-Za-z][A-Za-z0-9+.\-]*://)")
# Two patterns and not one: a single one would try every place in a long text without an end.
_PARAMETER = re.compile(r"[?&;]([^=&#;?]*)=")
_VALUE = re.compile(r"[^&#]*")  # with ";", which may be part of a password
# "host:6379/0?name=x@y" has its "@" in the query; "user:pass/word@host" and "user:2024/word@host" after the password.
_QUERY = re.compile(r"(?:\[[^\]]*\]|[^:/?#]+)(?::\d+)?(?:/[^?#@]*)?\?[^#]*=.*", re.DOTALL)
_SECRET = re.compile(r"pass|pwd|token|secret|key|sig|auth|cred", re.IGNORECASE)
_NO_SECRET = ("file", "path")


# -- opening ---------------------------------------------------------------------------------------------------------


def open_broker(
    url: str | Iterable[str],
    *,
    options: Mapping[str, Any] | None = None,
    clock: Clock = SYSTEM_CLOCK,
    app_name: str = "",
) -> Broker:
    """Return the broker of a URL. It does not connect yet: :meth:`Broker.open` does.

    Of several URLs the first is used, and the driver finds the others under ``options["alternates"]``, to go on to
    when it cannot connect; a list of sentinels is one URL. Raises :exc:`ImproperlyConfigured` for an unknown scheme,
    a missing library, and a list where the driver takes one URL.
    """
    return cast(Broker, _build(_BROKER, url, _options(options, app_name), clock))


def open_backend(
    url: str | Iterable[str] | None,
    *,
    options: Mapping[str, Any] | None = None,
    clock: Clock = SYSTEM_CLOCK,
    app_name: str = "",
) -> ResultBackend | None:
    """Return the result backend of a URL, unconnected, or None where results are disabled.

    ``None``, ``""``, ``"disabled"`` and ``"disabled://"`` disable results. As in Celery a bare name such as
    ``"redis"`` is that scheme with its default address. Errors are those of :func:`open_broker`.
    """
    if url is None or (isinstance(url, str) and (not url.strip() or url.strip().lower() in _DISABLED)):
        return None
    if isinstance(url, str) and url.strip().lower() in _BACKENDS:
        url = f"{url.strip()}://"
    if isinstance(url, str):
        _refuse_celerys(url.partition("://")[0].strip())
    return cast(ResultBackend, _build(_BACKEND, url, _options(options, app_name), clock))


def _options(options: Mapping[str, Any] | None, app_name: str) -> dict[str, Any]:
    given = dict(options or {})
    if app_name:
        given.setdefault("app_name", app_name)
    return given


def _build(kind: _Kind, url: str | Iterable[str], options: dict[str, Any], clock: Clock) -> object:
    urls = split(url)
    if not urls:
        raise ImproperlyConfigured(f"the URL of the {kind.noun} is empty; give one such as redis://localhost:6379/0")
    # Drivers compare schemes as they are written here.
    urls = [f"{scheme_of(one, noun=kind.noun)}://{_SCHEME.sub('', one, count=1)}" for one in urls]
    scheme = scheme_of(urls[0])
    driver = kind.known.get(scheme) or _third_party(kind, scheme)
    if driver is None:
        raise ImproperlyConfigured(_unknown(kind, scheme))
    whole = urls[0]
    if scheme == "sentinel":
        whole = ";".join(urls)
    elif len(urls) > 1:
        if driver.one_url:
            raise ImproperlyConfigured(f"the {kind.noun} {scheme}:// takes one URL, not a list: {driver.one_url}")
        options.setdefault("alternates", tuple(urls[1:]))
    return _construct(driver, scheme, whole, options, clock)


def unread(url: str | Iterable[str] | None, options: Mapping[str, Any], *, results: bool = False) -> list[str]:
    """Return the names of the transport options that do nothing at this URL; none where nobody can tell.

    >>> unread("redis://", {"visibility_timeout": 3600, "global_keyprefix": "shop:"})
    ['visibility_timeout']
    """
    urls = split(url or "")
    driver = (_BACKENDS if results else _BROKERS).get(scheme_of(urls[0])) if urls and "://" in urls[0] else None
    return [] if driver is None or driver.reads is None else sorted(set(options) - driver.reads)


def sends_results(url: Any) -> bool:
    """Whether the result backend of this URL sends results to their callers instead of storing them."""
    driver = _BACKENDS.get(url.partition(":")[0].strip().lower()) if isinstance(url, str) else None
    return driver is not None and driver.sends


def failover(strategy: Any) -> Callable[[Sequence[str]], Iterator[str]]:
    """Return the function from a list of URLs to the order of trying them that ``broker_failover_strategy`` names.

    ``round-robin`` (as it is where nothing is said) and ``shuffle`` are known by name; else it is a function of
    one's own, or ``module:function``. Raises :exc:`ImproperlyConfigured` for anything else.
    """
    if strategy is None:
        return itertools.cycle
    if isinstance(strategy, str) and strategy in _STRATEGIES:
        return _STRATEGIES[strategy]
    if isinstance(strategy, str):
        module, _, name = strategy.replace(":", ".").rpartition(".")
        try:
            strategy = getattr(importlib.import_module(module), name)
        except (ImportError, ValueError, AttributeError):
            strategy = strategy or "''"
    if not callable(strategy):
        raise ImproperlyConfigured(
            f"broker_failover_strategy is {strategy!r}; use {' or '.join(_STRATEGIES)}, or a function from a list of "
            "URLs to an iterator of them"
        )
    found: Callable[[Sequence[str]], Iterator[str]] = strategy
    return found


def _shuffled(urls: Sequence[str]) -> Iterator[str]:
    while True:
        yield from random.sample(urls, len(urls))


_STRATEGIES: Mapping[str, Callable[[Sequence[str]], Iterator[str]]] = {
    "round-robin": itertools.cycle,
    "shuffle": _shuffled,
}


def _construct(driver: _Driver, scheme: str, url: str, options: Mapping[str, Any], clock: Clock) -> object:
    module, _, name = driver.target.partition(":")
    try:
        made: object = getattr(importlib.import_module(module), name)(url, options=options, clock=clock)
    except ModuleNotFoundError as exc:
        # Only the driver's own library is a missing extra; anything else is a broken installation.
        library = driver.library or driver.extra
        if not library or (exc.name or "").partition(".")[0] != library:
            raise
        raise ImproperlyConfigured(
            f"URLs that start with {scheme}:// need the {library} library: pip install 'umbel[{driver.extra}]'"
        ) from exc
    return made


def _third_party(kind: _Kind, scheme: str) -> _Driver | None:
    from importlib.metadata import entry_points  # slow to import, and needed for unusual schemes only

    for point in entry_points(group=kind.group, name=scheme):
        return _Driver(point.value)
    return None


def _refuse_celerys(name: str) -> None:
    """Raise for what a package brings for Celery, such as ``django-db``: by its name there or the path of a class."""
    if name in _BACKENDS or name in _ALIASES:
        return
    from importlib.metadata import entry_points

    found = [point.value for point in entry_points(group="celery.result_backends") if name in (point.name, point.value)]
    if found or name in _DJANGO or (":" in name and "/" not in name):
        what = f"{name} ({found[0]})" if found and found[0] != name else name
        raise ImproperlyConfigured(
            f"the result backend {what} was written for Celery, and Umbel cannot use it. Keep results in redis://, "
            "sqlite:/// or rpc://; the tables and admin pages of the package go on working"
        )


def _unknown(kind: _Kind, scheme: str) -> str:
    from importlib.metadata import entry_points

    names = sorted({*kind.known, *entry_points(group=kind.group).names})
    text = f"no {kind.noun} for scheme {scheme!r}; known: {', '.join(names)}"
    for what, schemes in _PLANNED.items():
        if scheme in schemes:
            return f"{text} ({what} is not available yet in this build)"
    near = difflib.get_close_matches(scheme, names, n=1)
    return f"{text}; did you mean {near[0]!r}?" if near else f"{text}; use one of these"


# -- reading URLs ----------------------------------------------------------------------------------------------------


def split(url: str | Iterable[str]) -> list[str]:
    """Return the single URLs of a failover list, given as a list or in one string with ``;`` between.

    >>> split("redis://a/0;redis://b/0")
    ['redis://a/0', 'redis://b/0']
    """
    parts = _SEPARATOR.split(url) if isinstance(url, str) else [part for one in url for part in split(one)]
    return [part.strip().rstrip(";").strip() for part in parts if part.strip(" ;\t\r\n")]


def scheme_of(url: str, *, noun: str = "broker") -> str:
    """Return the scheme of a URL, in lower case and under our name for it.

    >>> scheme_of("REDIS://localhost")
    'redis'
    """
    found = _SCHEME.match(url)
    if found is None:
        shown = mask(f"none://{url}").removeprefix("none://")
        raise ImproperlyConfigured(
            f"the URL of the {noun} has no scheme: {shown!r}; write it as scheme://…, such as redis://localhost:6379/0"
        )
    name = found.group(1).lower()
    return _ALIASES.get(name, name)


def mask(url: object, *, hidden: str = "**") -> str:
    """Return the URL, or the list of URLs, as it may be shown: without passwords and tokens.

    Unescaped ``@``, ``/`` and ``;`` in a password do not uncover it: where it is unclear what belongs to the
    password, too much is hidden. Text that is no URL comes back as it is.

    >>> mask("redis://me:s3cret@localhost:6379/0?ssl_password=x&db=1")
    'redis://me:**@localhost:6379/0?ssl_password=**&db=1'
    >>> mask("sentinel://:a@one:26379;sentinel://:b@two:26379")
    'sentinel://:**@one:26379;sentinel://:**@two:26379'
    """
    if isinstance(url, (list, tuple)):
        return ";".join(mask(part, hidden=hidden) for part in url)
    text = str(url)
    starts = [0] + [found.end() for found in _SEPARATOR.finditer(text)]
    ends = [*starts[1:], len(text)]
    return "".join(_mask_one(text[start:end], hidden) for start, end in zip(starts, ends, strict=True))


def _mask_one(url: str, hidden: str) -> str:
    found = _SCHEME.match(url.lstrip())
    if found is None:
        return url
    lead = len(url) - len(url.lstrip()) + found.end()
    head, rest = url[:lead], url[lead:]
    user, colon, _ = rest.partition(":")
    at = rest.rfind("@")
    if colon and at > len(user) and not re.search(r"[/?#@]", user) and _QUERY.fullmatch(rest[:at]) is None:
        shown = _mask_query(rest[at:], hidden)
        if _mask_query(rest[:at], hidden) != rest[:at]:
            # What comes next may belong to the password, or to a parameter that is one.
            shown = f"@{hidden}{shown[_VALUE.match(shown, 1).end() :]}"  # type: ignore[union-attr]
        return f"{head}{user}:{hidden}{shown}"
    return head + _mask_query(rest, hidden)


def _mask_query(text: str, hidden: str) -> str:
    shown, at = "", 0
    while found := _PARAMETER.search(text, at):
        shown += text[at : found.end()]
        at = found.end()
        if _SECRET.search(found[1]) and not found[1].lower().endswith(_NO_SECRET):
            shown += hidden
            at = _VALUE.match(text, at).end()  # type: ignore[union-attr]
    return shown + text[at:]


# -- which URLs an app uses ------------------------------------------------------------------------------------------


class Urls(NamedTuple):
    """Where one app reads, writes and keeps results. ``default`` says that no broker was configured."""

    read: Any
    write: Any
    backend: Any  # None: results are disabled
    default: bool


def choose(settings: Mapping[str, Any], app_name: str | None, module_file: str | None) -> Urls:
    """Return the URLs that an app with these settings uses.

    Without a broker all three are :func:`default_url`, unless ``result_backend`` says otherwise. With a broker and
    no ``result_backend`` results are disabled, as in Celery.
    """
    read, write, backend = (settings.get(name) for name in ("broker_read_url", "broker_write_url", "result_backend"))
    if read or write:
        return Urls(read or write, write or read, backend, False)
    url = default_url(app_name, module_file)
    return Urls(url, url, backend or url, True)


def default_url(app_name: str | None, module_file: str | None) -> str:
    """Return the SQLite URL of an app without a broker. Creates nothing.

    ``$UMBEL_HOME/<app>.db``; else ``.umbel/<app>.db`` beside the nearest ``pyproject.toml`` or ``.git`` above the
    app's module; else in the user's state folder. Never the working directory: two folders would be two queues.
    """
    source = Path(module_file).absolute() if module_file and Path(module_file).exists() else None
    name = app_name if app_name and app_name != "__main__" else (source.stem if source else "umbel")
    path = _home(source) / f"{safe_name(name)}.db"
    return "sqlite:///" + quote(path.as_posix(), safe="/:")


def _home(source: Path | None) -> Path:
    if os.environ.get("UMBEL_HOME"):
        return Path(os.environ["UMBEL_HOME"]).expanduser().absolute()
    for folder in source.parents if source else ():
        if (folder / "pyproject.toml").exists() or (folder / ".git").exists():
            return folder / ".umbel"
    return _state_folder() / "umbel"


def _state_folder() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")


def safe_name(name: str) -> str:
    """Return a file name for an app's name, the same for the same name and another for another.

    >>> safe_name("shop.tasks")
    'shop.tasks'
    """
    safe = re.sub(r"[^A-Za-z0-9._\-]", "_", name).lstrip(".")[:80]
    reserved = re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", safe)
    if safe and safe == name and not reserved:
        return safe
    return f"{safe or 'app'}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
