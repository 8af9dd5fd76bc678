"""The second half of the table: the parts of ``kombu`` and ``billiard`` that programs for Celery import."""

from __future__ import annotations

from typing import Final

_HERE = "umbel.celery"
_ENTITIES = {f"{_HERE}.entities": "Exchange Queue binding"}
_MESSAGING = {f"{_HERE}.connection": "Consumer Producer"}
_FUNCTIONAL = {
    f"{_HERE}.functional": "LRUCache dictfilter evaluate_promises fxrange fxrangemax is_list lazy "
    "maybe_evaluate maybe_list memoize reprcall reprkwargs retry_over_time",
}

#: Module -> where its names come from; as in :mod:`umbel.celery.surface`.
KOMBU: Final[dict[str, dict[str, str] | str]] = {
    "kombu": {
        **_ENTITIES,
        f"{_HERE}.connection": "BrokerConnection=Connection Connection Consumer Producer",
        f"{_HERE}.version": "VERSION=KOMBU_VERSION __version__=KOMBU_VERSION_TEXT version_info=KOMBU_VERSION",
        "umbel.utils.identity": "uuid",
        f"{_HERE}.kombu_serialization": "disable_insecure_serializers enable_insecure_serializers",
    },
    "kombu.common": {
        f"{_HERE}.entities": "Broadcast",
        f"{_HERE}.connection": "maybe_declare",
        "umbel.utils.identity": "uuid",
    },
    "kombu.compression": {"umbel.compression": "compress decompress"},
    "kombu.connection": {f"{_HERE}.connection": "Connection"},
    "kombu.entity": _ENTITIES,
    "kombu.exceptions": {
        "umbel.exceptions": "ContentDisallowed DecodeError EncodeError OperationalError SerializationError",
        f"{_HERE}.kombu_errors": "ChannelError ConnectionError HttpError InconsistencyError KombuError "
        "LimitExceeded NotBoundError ResourceError SerializerNotInstalled TimeoutError VersionMismatch",
    },
    "kombu.log": {"umbel.utils.log": "get_logger"},
    "kombu.messaging": {**_MESSAGING, **_ENTITIES},
    "kombu.serialization": {
        "umbel.serialization": "register dumps loads",
        f"{_HERE}.kombu_serialization": "disable_insecure_serializers enable_insecure_serializers "
        "prepare_accept_content registry unregister",
    },
    "kombu.utils": {
        "umbel.utils.identity": "uuid",
        "umbel.loading": "symbol_by_name",
        f"{_HERE}.functional": "cached_property retry_over_time",
        f"{_HERE}.texts": "maybe_sanitize_url",
    },
    "kombu.utils.collections": {f"{_HERE}.functional": "LRUCache"},
    "kombu.utils.compat": {f"{_HERE}.imports": "entrypoints"},
    "kombu.utils.encoding": {f"{_HERE}.texts": "bytes_to_str default_encode ensure_bytes from_utf8 safe_repr "
    "safe_str str_to_bytes"},
    "kombu.utils.functional": _FUNCTIONAL,
    "kombu.utils.imports": {"umbel.loading": "symbol_by_name"},
    "kombu.utils.json": {
        "umbel.jsoncodec": "register_type",
        f"{_HERE}.kombu_serialization": "JSONEncoder dumps=json_dumps loads=json_loads",
    },
    "kombu.utils.limits": {f"{_HERE}.limits": "TokenBucket"},
    "kombu.utils.objects": {f"{_HERE}.functional": "cached_property"},
    "kombu.utils.text": {f"{_HERE}.texts": "version_string_as_tuple"},
    "kombu.utils.time": {f"{_HERE}.times": "maybe_s_to_ms"},
    "kombu.utils.url": {f"{_HERE}.texts": "as_url maybe_sanitize_url parse_url sanitize_url urlparts safequote"},
    "kombu.utils.uuid": {"umbel.utils.identity": "uuid generate_uuid=uuid"},
    "billiard": {
        f"{_HERE}.version": "VERSION=BILLIARD_VERSION __version__=BILLIARD_VERSION_TEXT",
        "multiprocessing": "cpu_count current_process",
    },
    "billiard.einfo": {
        "umbel.tracing": "ExceptionInfo",
        f"{_HERE}.kombu_errors": "ExceptionWithTraceback",
    },
    "billiard.exceptions": {
        "umbel.exceptions": "SoftTimeLimitExceeded Terminated TimeLimitExceeded WorkerLostError",
        f"{_HERE}.kombu_errors": "CoroStop RestartFreqExceeded",
    },
    "billiard.pool": {f"{_HERE}.pools": "Worker=PoolWorker"},
    "billiard.process": {"multiprocessing": "current_process"},
}  # fmt: skip
