"""``kombu.serialization`` and ``kombu.utils.json``, on Umbel's serializers."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Any

from umbel import serialization


class SerializerRegistry:
    """The serializers of this process."""

    def register(
        self, name: str, encoder: Any, decoder: Any, content_type: str, content_encoding: str = "utf-8"
    ) -> None:
        """Add a serializer, or replace one."""
        serialization.register(name, encoder, decoder, content_type, content_encoding)

    def unregister(self, name: str) -> None:
        """Not done: a serializer is not used unless it is accepted."""
        unregister(name)

    def enable(self, name: str) -> None:
        """Do nothing: what may be read is in ``accept_content``."""

    disable = enable

    def dumps(self, data: Any, serializer: str | None = None) -> tuple[str, str, bytes]:
        """Return content type, encoding and bytes."""
        return serialization.dumps(data, serializer)

    def loads(
        self, data: Any, content_type: str, content_encoding: str, accept: Collection[str] | None = None, **more: Any
    ) -> Any:
        """Return the value; JSON alone unless ``accept`` says more."""
        return serialization.loads(data, content_type, content_encoding, accept)


registry = SerializerRegistry()


def unregister(name: str) -> None:
    """Refuse: messages that are under way may need the serializer."""
    raise NotImplementedError(f"serializers are not taken away; leave {name!r} out of accept_content")


def enable_insecure_serializers(choices: Iterable[str] = ()) -> None:
    """Refuse: what a process reads is said by its app."""
    raise NotImplementedError("set accept_content of the app to what it may read, for example ['json', 'pickle']")


def disable_insecure_serializers(allowed: Iterable[str] | None = None) -> None:
    """Do nothing: only what ``accept_content`` names is read, and that is JSON unless it says more."""


def prepare_accept_content(content_types: Any, name_to_type: Any = None) -> Any:
    """Return names of serializers as content types."""
    if content_types is None:
        return None
    return {serialization.content_type_of(name) for name in content_types}


class JSONEncoder(json.JSONEncoder):
    """For subclasses that were given to kombu; Umbel encodes by ``register_type`` and ``__json__``."""

    def default(self, o: Any) -> Any:
        """Return a value in types that JSON has."""
        return json.loads(serialization.json_dumps(o))


def json_dumps(s: Any, _dumps: Any = None, cls: Any = None, default_kwargs: Any = None, **kwargs: Any) -> str:
    """Return the value as JSON, dates and such with their type."""
    return json.dumps(s, cls=cls or JSONEncoder, **kwargs) if cls is not None or kwargs else serialization.json_dumps(s)


def json_loads(s: Any, _loads: Any = None, decode_bytes: bool = True, object_hook: Any = None) -> Any:
    """Return the value of JSON, bytes or text."""
    return serialization.json_loads(s) if object_hook is None else json.loads(s, object_hook=object_hook)
