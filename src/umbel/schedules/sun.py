"""By the sun: dawn, sunrise, noon, sunset and dusk at a place. Needs ``ephem``, the extra ``umbel[solar]``."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, tzinfo
from typing import Any, Final, NamedTuple

from umbel.exceptions import ImproperlyConfigured
from umbel.schedules.base import BaseSchedule
from umbel.schedules.zones import utc


class _Event(NamedTuple):
    """How ``ephem`` computes it: the angle of the horizon, its method, and whether the sun's centre counts."""

    horizon: str
    method: str
    center: bool


_EVENTS: Final = {
    "dawn_astronomical": _Event("-18", "next_rising", True),
    "dawn_nautical": _Event("-12", "next_rising", True),
    "dawn_civil": _Event("-6", "next_rising", True),
    "sunrise": _Event("-0:34", "next_rising", False),
    "solar_noon": _Event("0", "next_transit", False),
    "sunset": _Event("-0:34", "next_setting", False),
    "dusk_civil": _Event("-6", "next_setting", True),
    "dusk_nautical": _Event("-12", "next_setting", True),
    "dusk_astronomical": _Event("-18", "next_setting", True),
}
_DAYS: Final = 366  # how far to look where the sun does not rise or set every day


class solar(BaseSchedule):
    """Due at an event of the sun: ``dawn_astronomical``, ``dawn_nautical``, ``dawn_civil``, ``sunrise``,
    ``solar_noon``, ``sunset``, ``dusk_civil``, ``dusk_nautical`` or ``dusk_astronomical``."""

    def __init__(
        self,
        event: str,
        lat: float,
        lon: float,
        nowfun: Callable[[], datetime] | None = None,
        app: Any = None,
    ) -> None:
        """``lat`` and ``lon`` are degrees, positive to the north and to the east.

        Raises :exc:`ImproperlyConfigured <umbel.exceptions.ImproperlyConfigured>` without ``ephem``, and
        :exc:`ValueError`.
        """
        super().__init__(nowfun, app)
        if event not in _EVENTS:
            raise ValueError(f'Argument event "{event}" is invalid, must be one of {", ".join(sorted(_EVENTS))}.')
        if not -90 <= lat <= 90:
            raise ValueError(f"Argument latitude {lat} is invalid, must be between -90 and 90.")
        if not -180 <= lon <= 180:
            raise ValueError(f"Argument longitude {lon} is invalid, must be between -180 and 180.")
        self.event, self.lat, self.lon = event, lat, lon
        self._ephem = _ephem()

    def next_after(self, moment: datetime, *, zone: tzinfo = UTC) -> datetime | None:
        """Return the event's first time after a moment; None if there is none within a year, as near the poles."""
        moment = utc(moment)
        event, ephem, place = _EVENTS[self.event], self._ephem, self._place()
        options = {"use_center": True} if event.center else {}
        start, sun = ephem.Date(moment), ephem.Sun()
        for _ in range(_DAYS):
            try:
                found = getattr(place, event.method)(sun, start=start, **options)
            except ephem.CircumpolarError:
                start = place.next_antitransit(sun, start=start)
                continue
            due: datetime = found.datetime().replace(tzinfo=UTC)
            if due > moment:
                return due
            # The library rounds, and may find again what it was started from.
            start = ephem.Date(found + ephem.minute)
        return None

    def _place(self) -> Any:
        place = self._ephem.Observer()
        place.lat, place.lon, place.elev, place.pressure = str(self.lat), str(self.lon), 0, 0
        place.horizon = _EVENTS[self.event].horizon
        return place

    def __repr__(self) -> str:
        return f"<solar: {self.event} at latitude {self.lat}, longitude: {self.lon}>"

    def _said(self) -> tuple[Any, ...]:
        return (self.event, self.lat, self.lon)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.event, self.lat, self.lon)


def _ephem() -> Any:
    try:
        import ephem  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise ImproperlyConfigured("solar schedules need ephem: pip install 'umbel[solar]'") from error
    return ephem
