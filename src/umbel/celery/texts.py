"""``celery.utils.text`` and ``term``, and kombu's helpers for URLs and encodings."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pprint import pformat
from textwrap import fill
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlparse

from umbel.drivers import mask
from umbel.saferepr import saferepr


def str_to_list(s: Any) -> Any:
    """Return text with commas as a list; anything else as it is."""
    return s.split(",") if isinstance(s, str) else s


def dedent_initial(s: str, n: int = 4) -> str:
    """Return the text without ``n`` spaces at its beginning."""
    return s[n:] if s[:n] == " " * n else s


def dedent(s: str, sep: str = "\n") -> str:
    """Return the text with that taken from each line."""
    return sep.join(dedent_initial(line) for line in s.splitlines())


def fill_paragraphs(s: str, width: int, sep: str = "\n") -> str:
    """Return the text with each paragraph broken at the width."""
    return sep.join(fill(paragraph, width) for paragraph in s.split(sep))


def join(l: Iterable[str], sep: str = "\n") -> str:  # noqa: E741
    """Return the texts that are not empty as one."""
    return sep.join(text for text in l if text)


def ensure_sep(sep: str, s: str, n: int = 2) -> str:
    """Return the text with at least ``n`` separators at its end."""
    return s + sep * (n - s.count(sep))


def ensure_newlines(s: str, n: int = 2) -> str:
    """Return the text with at least ``n`` line ends."""
    return ensure_sep("\n", s, n)


def abbr(S: str, max: int, ellipsis: str | bool = "...") -> str:
    """Return the text, cut to at most ``max`` characters."""
    if S is None:
        return "???"
    if len(S) <= max:
        return S
    return S[: max - len(ellipsis)] + ellipsis if isinstance(ellipsis, str) and ellipsis else S[:max]


def abbrtask(S: str, max: int) -> str:
    """Return a task's name, its module cut so that it has at most ``max`` characters."""
    if S is None:
        return "???"
    if len(S) <= max:
        return S
    module, _, name = S.rpartition(".")
    return f"{abbr(module, max - len(name) - 3, False)}[.]{name}"


def indent(t: str, indent: int = 0, sep: str = "\n") -> str:
    """Return the text with spaces before each line."""
    return sep.join(" " * indent + part for part in t.split(sep))


def truncate(s: str, maxlen: int = 128, suffix: str = "...") -> str:
    """Return the text, cut at a word to about ``maxlen`` characters."""
    if maxlen and len(s) >= maxlen:
        return s[:maxlen].rsplit(" ", 1)[0] + suffix
    return s


def pluralize(n: float, text: str, suffix: str = "s") -> str:
    """Return the word, with its suffix unless there is one of it."""
    return text + suffix if n != 1 else text


def pretty(value: Any, width: int = 80, nl_width: int = 80, sep: str = "\n", **kw: Any) -> str:
    """Return a value formatted for people; a mapping over several lines."""
    if isinstance(value, Mapping):
        return f"{{{sep} {pformat(value, 4, nl_width)[1:]}"
    return pformat(value, width=width, **kw)


def match_case(s: str, other: str) -> str:
    """Return the text in the case of another."""
    return s.upper() if other.isupper() else s.lower()


def simple_format(
    s: str, keys: Mapping[str, Any], pattern: re.Pattern[str] = re.compile(r"%([%\w])"), expand: str = r"\1"
) -> str:
    """Return the text with ``%x`` replaced by ``keys["x"]``, or by what it returns; ``%%`` is one per cent sign."""
    if not s:
        return s
    known = {"%": "%", **keys}

    def resolve(match: re.Match[str]) -> str:
        key = match.expand(expand)
        if key not in known:
            raise ValueError(f"Unknown format %{key} in {s!r}; known are {', '.join(sorted(known))}")
        found = known[key]
        return str(found() if callable(found) else found)

    return pattern.sub(resolve, s)


def remove_repeating(substr: str, s: str) -> str:
    """Return the text with the second and later of these taken away."""
    index = s.find(substr)
    if index < 0:
        return s
    end = index + len(substr)
    return s[:end] + s[end:].replace(substr, "")


def remove_repeating_from_task(task_name: str, s: str) -> str:
    """Return the text with the task's module taken away where it follows the task's name."""
    module = str(task_name).rpartition(".")[0] + "."
    return remove_repeating(module, s)


class WhateverIO(io.StringIO):
    """A text stream that takes bytes as well."""

    def __init__(self, v: str | bytes | None = None, *a: Any, **kw: Any) -> None:
        super().__init__(bytes_to_str(v or ""), *a, **kw)

    def write(self, data: str | bytes) -> int:
        """Write text, or bytes as UTF-8."""
        return super().write(bytes_to_str(data))


def reprstream(stack: Any, *args: Any, **kwargs: Any) -> Any:
    """Yield the representation of what is on the stack."""
    return (saferepr(each) for each in stack)


# -- terminals -------------------------------------------------------------------------------------------------------


def supports_images() -> bool:
    """Say whether the terminal shows images."""
    return sys.stdin.isatty() and bool(os.environ.get("ITERM_PROFILE"))


_COLORS = {"black": 30, "red": 31, "green": 32, "yellow": 33, "blue": 34, "magenta": 35, "cyan": 36, "white": 37}
_STYLES = {
    **{name: f"\033[1;{code}m" for name, code in _COLORS.items()},
    **{f"i{name}": f"\033[{code + 10}m" for name, code in _COLORS.items()},
    "bright": "\033[1m",
    "bold": "\033[1m",
    "underline": "\033[4m",
    "blink": "\033[5m",
    "reverse": "\033[7m",
}


class colored:
    """Text in colours: ``colored().red("no ", colored().bold("!"))``; plain with ``enabled=False``."""

    def __init__(self, *s: Any, enabled: bool = True, op: str = "") -> None:
        self.s = s
        self.enabled = enabled
        self.op = op

    def __getattr__(self, name: str) -> Callable[..., colored]:
        style = _STYLES.get(name)
        if style is None:
            raise AttributeError(name)
        return lambda *s: colored(*s, enabled=self.enabled, op=style)

    def node(self, s: Iterable[Any], op: str) -> colored:
        """Return these parts in a style."""
        return colored(*s, enabled=self.enabled, op=op)

    def no_color(self) -> str:
        """Return the text without colours."""
        return "".join(part.no_color() if isinstance(part, colored) else str(part) for part in self.s)

    def embed(self) -> str:
        """Return the text with colours, and without the end of them."""
        return (self.op if self.enabled else "") + "".join(map(str, self.s))

    def __add__(self, other: Any) -> str:
        return str(self) + str(other)

    def __str__(self) -> str:
        return f"{self.embed()}\033[0m" if self.enabled else self.no_color()

    def __len__(self) -> int:
        return len(self.no_color())

    def __repr__(self) -> str:
        return repr(self.no_color())


# -- encodings -------------------------------------------------------------------------------------------------------


def str_to_bytes(s: Any) -> Any:
    """Return text as UTF-8; anything else as it is."""
    return s.encode("utf-8") if isinstance(s, str) else s


def bytes_to_str(s: Any) -> Any:
    """Return bytes as text; anything else as it is."""
    return s.decode("utf-8", "replace") if isinstance(s, bytes) else s


from_utf8 = bytes_to_str


def ensure_bytes(s: Any) -> bytes:
    """Return the value as bytes."""
    return s if isinstance(s, bytes) else str(s).encode("utf-8")


def default_encode(obj: Any) -> Any:
    """Return it as it is."""
    return obj


def safe_str(s: Any, errors: str = "replace") -> str:
    """Return the value as text; never raises."""
    return s if isinstance(s, str) else safe_repr(bytes_to_str(s)) if not isinstance(s, bytes) else bytes_to_str(s)


def safe_repr(o: Any, errors: str = "replace") -> str:
    """Return the representation; never raises."""
    try:
        return repr(o)
    except Exception as error:  # the object's own code runs here
        return f"<Unrepresentable {type(o).__name__}: {type(error).__name__}>"


# -- URLs ------------------------------------------------------------------------------------------------------------


class urlparts(NamedTuple):
    """A URL in parts."""

    scheme: str
    hostname: str | None
    port: int | None
    username: str | None
    password: str | None
    path: str
    query: dict[str, str]


def url_to_parts(url: str) -> urlparts:
    """Return the parts of a URL, unquoted."""
    parts = urlparse(url)
    return urlparts(
        parts.scheme,
        unquote(parts.hostname) if parts.hostname else None,
        parts.port,
        unquote(parts.username) if parts.username else None,
        unquote(parts.password) if parts.password else None,
        unquote(parts.path[1:] if parts.path.startswith("/") else parts.path),
        dict(parse_qsl(parts.query)),
    )


def parse_url(url: str) -> dict[str, Any]:
    """Return the parts of a broker's URL under kombu's names."""
    scheme, host, port, user, password, path, query = url_to_parts(url)
    return {"transport": scheme, "hostname": host, "port": port, "userid": user, "password": password,
            "virtual_host": path, **query}  # fmt: skip


def safequote(string: str, safe: str = "") -> str:
    """Return the text as it may stand in any part of a URL."""
    return quote(string, safe=safe)


def as_url(
    scheme: str,
    host: str | None = None,
    port: int | None = None,
    user: str | None = None,
    password: str | None = None,
    path: str | None = None,
    query: Any = None,
    sanitize: bool = False,
    mask: str = "**",
) -> str:
    """Return a URL made of its parts; with ``sanitize`` the password is hidden."""
    login = quote(user or "", safe="")
    if password:
        login += ":" + (mask if sanitize else quote(password, safe=""))
    return f"{scheme}://{login + '@' if login else ''}{host or ''}{f':{port}' if port else ''}/{path or ''}"


def sanitize_url(url: str, mask: str = "**") -> str:
    """Return the URL with its password hidden."""
    return _mask(url, mask)


def maybe_sanitize_url(url: Any, mask: str = "**") -> Any:
    """Return a URL with its password hidden; anything else as it is."""
    return _mask(url, mask) if isinstance(url, str) and "://" in url else url


def _mask(url: str, hidden: str) -> str:
    return mask(url, hidden=hidden)


def version_string_as_tuple(s: str) -> tuple[Any, ...]:
    """Return a version such as ``5.7.0rc1`` as (5, 7, 0, "rc1", "")."""
    match = re.match(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?(.*)", s)
    if match is None:
        raise ValueError(f"{s!r} is no version")
    return (*(int(part or 0) for part in match.groups()[:3]), match[4].lstrip(".-"), "")
