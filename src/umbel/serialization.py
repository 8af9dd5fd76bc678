"""Values to bytes and back, under kombu's serializer names and content types.

Encoding may use any serializer. Decoding uses only those that the reader accepts, and that is JSON alone unless told
otherwise. Those that run what the writer wants, such as pickle, are *unsafe*: an app uses them only where the setting
``accept_unsafe`` says so too. yaml and msgpack are imported when first used.
"""

from __future__ import annotations

import codecs
import functools
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, NamedTuple, NoReturn

from umbel.compression import DEFAULT_LIMIT, compress, decompress
from umbel.exceptions import ContentDisallowed, DecodeError, EncodeError, ImproperlyConfigured, SecurityError
from umbel.jsoncodec import encode_text, explain, json_dumps, json_loads, register_type
from umbel.nesting import MAX_DEPTH, TOO_DEEP, too_deep, value_too_deep
from umbel.remote import decode_exception, encode_exception

__all__ = [
    "DEFAULT_LIMIT",
    "JSON_ONLY",
    "accepted_by",
    "compress",
    "content_type_of",
    "decode_exception",
    "decompress",
    "dumps",
    "encode_exception",
    "json_dumps",
    "json_loads",
    "is_unsafe",
    "loads",
    "refusal",
    "refuse_unsafe",
    "register",
    "register_type",
]

JSON_ONLY: Final = ("json",)
"""What is accepted when nothing else is said."""

_RAW: Final = "application/data"
_ALWAYS_ACCEPTED: Final = frozenset({_RAW, "application/text"})  # handed over as they are, so harmless
_NOT_TEXT: Final = frozenset({"binary", "ascii-8bit"})
_PICKLE_PROTOCOL: Final = 4  # kombu's
_MOST_SPREAD: Final = 64  # values per byte of YAML, and for free


class _Serializer(NamedTuple):
    content_type: str
    content_encoding: str
    encode: Callable[[Any], bytes | str] | None
    decode: Callable[[bytes], Any] | None


def _encode_pickle(value: Any) -> bytes:
    import pickle

    return pickle.dumps(value, protocol=_PICKLE_PROTOCOL)


def _decode_pickle(data: bytes) -> Any:
    import pickle

    return pickle.loads(data)  # nosec B301 # accept_unsafe allows it


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ImproperlyConfigured("the yaml serializer needs a package: pip install 'umbel[yaml]'") from error
    return yaml


def _encode_yaml(value: Any) -> str:
    text: str = _yaml().safe_dump(value)
    return text


def _decode_yaml(data: bytes) -> Any:
    _yaml()
    from yaml.constructor import ConstructorError

    loader = _yaml_loader()(data)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        # A few hundred bytes of aliases can stand for more values than any memory holds. They are counted as nodes,
        # before anything is built: a merge ("<<") would already copy them.
        if _spread(root, {}) > _MOST_SPREAD * (len(data) + _MOST_SPREAD):
            raise ConstructorError(None, None, "its aliases stand for too many values", root.start_mark)
        return loader.construct_document(root)
    finally:
        loader.dispose()


@functools.cache
def _yaml_loader() -> Any:
    from yaml.events import CollectionEndEvent, CollectionStartEvent

    class Loader(_yaml().SafeLoader):  # type: ignore[misc]
        """The safe loader, with a limit: its own is the interpreter's."""

        depth = 0

        def get_event(self) -> Any:
            event = super().get_event()
            if isinstance(event, CollectionStartEvent):
                self.depth += 1
                if self.depth > MAX_DEPTH:
                    raise ValueError(TOO_DEEP)
            elif isinstance(event, CollectionEndEvent):
                self.depth -= 1
            return event

    return Loader


def _spread(node: Any, known: dict[int, float]) -> float:
    """Return how many nodes a YAML node stands for with its aliases written out; infinity where it holds itself."""
    found = known.get(id(node))
    if found is not None:
        return found
    known[id(node)] = math.inf  # until it is counted: whoever meets it before is inside it
    total = 1.0
    children = node.value if isinstance(node.value, list) else ()
    for child in children:
        parts = child if isinstance(child, tuple) else (child,)
        total += sum(_spread(part, known) for part in parts)
    known[id(node)] = total
    return total


def _msgpack() -> Any:
    try:
        import msgpack  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise ImproperlyConfigured("the msgpack serializer needs a package: pip install 'umbel[msgpack]'") from error
    return msgpack


def _encode_msgpack(value: Any) -> bytes:
    data: bytes = _msgpack().packb(value, use_bin_type=True)
    return data


def _decode_msgpack(data: bytes) -> Any:
    # Without limits of its own it takes those of the data's length. It keeps its place in a table of 1024 levels and
    # not on the stack, so that looking afterwards is soon enough.
    value = _msgpack().unpackb(data, raw=False, strict_map_key=True, ext_hook=_refuse_extension)
    if len(data) > MAX_DEPTH and value_too_deep(value):
        raise ValueError(TOO_DEEP)
    return value


def _refuse_extension(code: int, data: bytes) -> NoReturn:
    raise ValueError(f"it holds an extension type ({code}), which nobody has explained")


_by_name: dict[str, _Serializer] = {}
_by_content_type: dict[str, tuple[str, _Serializer]] = {}
_unsafe: set[str] = set()  # names and content types; none is ever taken out


def register(
    name: str,
    encoder: Callable[[Any], bytes | str] | None,
    decoder: Callable[[bytes], Any] | None,
    content_type: str,
    content_encoding: str = "utf-8",
    *,
    unsafe: bool = False,
) -> None:
    """Add a serializer to this process, or replace one. The reader needs it too, and must accept it.

    Without an encoder it can only be read, without a decoder only be written.

    :param unsafe: reading it may run code that the writer chose (dill, cloudpickle), so that it is only used where
        ``accept_unsafe`` is set. Whatever takes pickle's name or content type is unsafe.
    """
    serializer = _Serializer(content_type, content_encoding, encoder, decoder)
    if unsafe:
        _unsafe.update((name, content_type))
    _by_name[name] = serializer
    _by_content_type[content_type] = (name, serializer)


register("json", encode_text, json_loads, "application/json")
register("pickle", _encode_pickle, _decode_pickle, "application/x-python-serialize", "binary", unsafe=True)
register("yaml", _encode_yaml, _decode_yaml, "application/x-yaml")
register("msgpack", _encode_msgpack, _decode_msgpack, "application/x-msgpack", "binary")


def content_type_of(name: str) -> str:
    """Return the content type of a serializer given by name or content type; ImproperlyConfigured if unknown."""
    if "/" in name:
        return name
    return _serializer(name).content_type


def is_unsafe(name: str) -> bool:
    """Say whether reading what this serializer (or content type) wrote may run code that the writer chose."""
    return name in _unsafe


def refuse_unsafe(name: str | None, conf: Mapping[str, Any], where: str) -> None:
    """Raise :exc:`ImproperlyConfigured` for an unsafe serializer, unless the settings allow those.

    :param where: what names the serializer, as the subject of a sentence.
    """
    if name in _unsafe and not conf["accept_unsafe"]:
        raise ImproperlyConfigured(
            f"{where} names {name!r}, which runs whatever the writer of a message wants; use json, or, where everybody "
            "who can write to the broker and to the result backend may run code here, set accept_unsafe = True in "
            "clients and workers (with old names and in Django's settings: CELERY_ACCEPT_UNSAFE)"
        )


def accepted_by(conf: Mapping[str, Any], accept: Collection[str] | None = None) -> tuple[str, ...]:
    """Return what an app reads: ``accept_content``, or ``accept``, without what is unsafe and not allowed to be."""
    names = tuple(conf["accept_content"] if accept is None else accept)
    return names if _unsafe.isdisjoint(names) or conf["accept_unsafe"] else tuple(n for n in names if n not in _unsafe)


def dumps(value: Any, serializer: str | None = "json", *, what: str = "the value") -> tuple[str, str, bytes]:
    """Return (content type, content encoding, bytes); EncodeError names the part that cannot be carried.

    Without a serializer text and bytes go as they are and the rest as JSON; ``"raw"`` never serializes.

    :param what: how to call the value in an error message.
    """
    if serializer == "raw" or (serializer is None and isinstance(value, bytes | str)):
        return _dumps_raw(value, serializer)
    chosen = _serializer(serializer or "json")
    if chosen.encode is None:
        raise ImproperlyConfigured(f"serializer {serializer!r} can only read")
    try:
        data = chosen.encode(value)
    except (ImproperlyConfigured, EncodeError, SecurityError):
        raise
    except Exception as error:  # serializers and the hooks of values are user code: anything may come
        raise EncodeError(explain(value, what, chosen.encode, serializer or "json", error)) from error
    raw = data.encode("utf-8") if isinstance(data, str) else data
    if _nobody_reads(serializer, raw, value):
        raise EncodeError(f"{what}: {TOO_DEEP}, which nobody would read; pass flat data")
    return chosen.content_type, chosen.content_encoding, raw


def _nobody_reads(serializer: str | None, raw: bytes, value: Any) -> bool:
    if serializer in ("msgpack", "yaml"):
        return len(raw) > MAX_DEPTH and value_too_deep(value)
    return serializer in ("json", None) and too_deep(raw)


def _dumps_raw(value: Any, serializer: str | None) -> tuple[str, str, bytes]:
    if isinstance(value, str):
        return _RAW if serializer else "text/plain", "utf-8", value.encode("utf-8")
    if not isinstance(value, bytes):
        raise EncodeError(f"the raw serializer takes bytes or text, not {type(value).__name__}")
    return _RAW, "binary", value


def _serializer(name: str) -> _Serializer:
    try:
        return _by_name[name]
    except KeyError:
        known = ", ".join(_by_name)
        raise ImproperlyConfigured(f"unknown serializer {name!r}; known are {known}, or register() it") from None


def refusal(content_type: str | None, accept: Collection[str] | None, data: bytes = b"") -> ContentDisallowed | None:
    """Return the error to raise for a content type that is not accepted, or None when it is.

    :param accept: serializer names and content types; None for JSON alone.
    """
    if accept is None:
        accept = JSON_ONLY
    content_type = content_type or _RAW
    if content_type in accept or content_type in _ALWAYS_ACCEPTED:
        return None
    name = _by_content_type[content_type][0] if content_type in _by_content_type else content_type
    if name in accept:
        return None
    unsafe = ", and it is read only with accept_unsafe = True too" if content_type in _unsafe else ""
    return ContentDisallowed(
        f"refused to read content of type {content_type:.100}: {name[:100]!r} is not in accept_content "
        f"({', '.join(accept)}){unsafe}",
        content_type,
        data,
    )


def loads(
    data: bytes | str, content_type: str | None, content_encoding: str | None, accept: Collection[str] | None = None
) -> Any:
    """Return the value; ContentDisallowed when its type is not accepted, DecodeError when it cannot be read.

    A serializer that signs raises SecurityError for what nobody it trusts has signed.

    Content of a type that is accepted and has no decoder comes back as text, or as bytes where it is binary.

    :param accept: serializer names and content types; None for JSON alone.
    """
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    refused = refusal(content_type, accept, raw)
    if refused is not None:
        raise refused
    if not data:
        return data
    decode = _by_content_type[content_type][1].decode if content_type in _by_content_type else None
    try:
        if decode is not None:
            return decode(raw)
        encoding = (content_encoding or "utf-8").lower()
        return data if encoding in _NOT_TEXT or isinstance(data, str) else codecs.decode(data, encoding)
    except (ImproperlyConfigured, DecodeError, SecurityError):
        raise
    except Exception as error:  # what a decoder raises for broken or hostile bytes is not bounded
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error) or type(error).__name__
        raise DecodeError(f"cannot read content of type {content_type:.100}: {reason}", content_type, raw) from error
