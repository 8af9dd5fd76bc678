"""Prometheus' text format, for pages that are made without ``prometheus_client``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[Mapping[str, str], float]


def family(name: str, kind: str, doc: str, samples: Iterable[Sample]) -> str:
    r"""Return one metric with its samples. ``kind`` is ``gauge`` or ``counter``; a counter's name ends with ``_total``.

    >>> print(family("up", "gauge", "Whether.", [({"node": 'a"b'}, 1)]), end="")
    # HELP up Whether.
    # TYPE up gauge
    up{node="a\"b"} 1
    """
    lines = [f"# HELP {name} {doc}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        lines.append(f"{name}{{{inside}}} {value!r}" if inside else f"{name} {value!r}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    clean = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return clean.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
