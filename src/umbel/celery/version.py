"""The release of Celery whose names, wire and behaviour Umbel has; for programs that ask before they use them."""

from __future__ import annotations

from typing import Final, NamedTuple


class version_info_t(NamedTuple):
    """A version in parts."""

    major: int
    minor: int
    micro: int
    releaselevel: str
    serial: str


VERSION: Final = version_info_t(5, 7, 0, "", "")
version_info: Final = VERSION
__version__: Final = "5.7.0"
SERIES: Final = "umbel"
VERSION_BANNER: Final = f"{__version__} ({SERIES})"
__author__: Final = "Umbel"
__contact__: Final = ""
__homepage__: Final = ""
__docformat__: Final = "restructuredtext"

KOMBU_VERSION: Final = version_info_t(5, 7, 0, "", "")
KOMBU_VERSION_TEXT: Final = "5.7.0"
BILLIARD_VERSION: Final = (4, 3, 2, "")
BILLIARD_VERSION_TEXT: Final = "4.3.2"
