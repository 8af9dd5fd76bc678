"""Compression of message bodies, under kombu's names and content types.

Reading is bounded: a small message that would grow past the limit is refused before it does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from umbel.exceptions import DecodeError, ImproperlyConfigured

DEFAULT_LIMIT: Final = 16 << 20
"""The most bytes that :func:`decompress` returns unless told otherwise."""

_LZMA_MEMORY: Final = 128 << 20  # the dictionary of preset 9 takes 65 MiB


class _Codec(NamedTuple):
    content_type: str
    compress: Callable[[bytes], bytes]
    decompress: Callable[[bytes, int], bytes]  # returns at most limit + 1 bytes


def compress(data: bytes, name: str) -> tuple[bytes, str]:
    """Return the compressed bytes and the content type to put into the ``compression`` header.

    ``name`` is one of gzip, zlib, bzip2, lzma, zstd, brotli, or such a content type.
    """
    codec = _codec(name)
    if codec is None:
        known = ", ".join(sorted(_NAMES))
        raise ImproperlyConfigured(f"unknown compression {name!r}; known are {known}")
    return codec.compress(data), codec.content_type


def decompress(data: bytes, content_type: str, limit: int = DEFAULT_LIMIT) -> bytes:
    """Return the original bytes; DecodeError when they are broken, or more than ``limit`` bytes."""
    codec = _codec(content_type)
    if codec is None:
        raise DecodeError(f"unknown compression {content_type[:100]!r}", content_type, data)
    try:
        plain = codec.decompress(data, limit)
    except (ImproperlyConfigured, MemoryError):
        raise
    except Exception as error:  # each library has an error class of its own
        raise DecodeError(f"broken {content_type} data: {error}", content_type, data) from error
    if len(plain) > limit:
        raise DecodeError(f"{content_type} data of {len(data)} bytes grows past {limit} bytes", content_type, data)
    return plain


def _codec(name: str) -> _Codec | None:
    return _CODECS.get(_NAMES.get(name, name))


def _bounded(decoder: Any, data: bytes, limit: int) -> bytes:
    plain: bytes = decoder.decompress(data, limit + 1)
    if len(plain) <= limit and not decoder.eof:
        raise ValueError("it ends too early")
    return plain


def _zlib_compress(data: bytes) -> bytes:
    import zlib

    return zlib.compress(data)


def _zlib_decompress(data: bytes, limit: int) -> bytes:
    import zlib

    # Clients in other languages take the name at its word and write gzip; kombu writes zlib.
    return _bounded(zlib.decompressobj(zlib.MAX_WBITS | 32), data, limit)


def _bz2_compress(data: bytes) -> bytes:
    import bz2

    return bz2.compress(data)


def _bz2_decompress(data: bytes, limit: int) -> bytes:
    import bz2

    return _bounded(bz2.BZ2Decompressor(), data, limit)


def _lzma_compress(data: bytes) -> bytes:
    import lzma

    return lzma.compress(data)


def _lzma_decompress(data: bytes, limit: int) -> bytes:
    import lzma

    return _bounded(lzma.LZMADecompressor(memlimit=_LZMA_MEMORY), data, limit)


def _zstd_module() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd

        return zstd
    try:
        import zstandard
    except ImportError as error:
        raise ImproperlyConfigured("zstd compression needs a package: pip install 'umbel[zstd]'") from error
    return zstandard


def _zstd_compress(data: bytes) -> bytes:
    module = _zstd_module()
    packed: bytes = module.compress(data)
    return packed


def _zstd_decompress(data: bytes, limit: int) -> bytes:
    module = _zstd_module()
    if sys.version_info >= (3, 14):
        return _bounded(module.ZstdDecompressor(), data, limit)
    with module.ZstdDecompressor(max_window_size=1 << 27).stream_reader(data) as reader:
        plain: bytes = reader.read(limit + 1)
    # The reader takes a truncated frame for the end, so the frame's own word is asked.
    size = module.frame_content_size(data)
    if 0 <= size <= limit and size != len(plain):
        raise ValueError("it ends too early")
    return plain


def _brotli_module() -> Any:
    try:
        import brotli  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise ImproperlyConfigured("brotli compression needs a package: pip install 'umbel[brotli]'") from error
    return brotli


def _brotli_compress(data: bytes) -> bytes:
    packed: bytes = _brotli_module().compress(data)
    return packed


def _brotli_decompress(data: bytes, limit: int) -> bytes:
    decoder = _brotli_module().Decompressor()
    try:
        plain: bytes = decoder.process(data, output_buffer_limit=limit + 1)
    except TypeError as error:
        raise ImproperlyConfigured(
            "this brotli cannot bound its output: pip install --upgrade 'brotli>=1.2'"
        ) from error
    while len(plain) <= limit and not decoder.is_finished():
        more = decoder.process(b"", output_buffer_limit=limit + 1)
        if not more:
            raise ValueError("it ends too early")
        plain += more
    return plain


_CODECS: Final = {
    codec.content_type: codec
    for codec in (
        _Codec("application/x-gzip", _zlib_compress, _zlib_decompress),
        _Codec("application/x-bz2", _bz2_compress, _bz2_decompress),
        _Codec("application/x-lzma", _lzma_compress, _lzma_decompress),
        _Codec("application/zstd", _zstd_compress, _zstd_decompress),
        _Codec("application/x-brotli", _brotli_compress, _brotli_decompress),
    )
}
_NAMES: Final = {
    "gzip": "application/x-gzip",
    "zlib": "application/x-gzip",
    "bzip2": "application/x-bz2",
    "bzip": "application/x-bz2",
    "lzma": "application/x-lzma",
    "xz": "application/x-lzma",
    "zstd": "application/zstd",
    "zstandard": "application/zstd",
    "brotli": "application/x-brotli",
}
