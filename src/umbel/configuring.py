"""The part of an app that is about its configuration, and about moments."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from umbel.clock import SYSTEM_CLOCK
from umbel.interfaces import Clock
from umbel.settings import Settings
from umbel.signals import Signal
from umbel.signatures import Signature, reprcall


class Configuring:
    """What an app has to do with its settings. Users see :class:`umbel.app.Umbel`."""

    main: str | None
    conf: Settings
    clock: Clock = SYSTEM_CLOCK

    def _configure(self, changes: Mapping[str, Any], source: Any, namespace: str | None) -> None:
        self._announced = False
        self.on_configure = Signal(name="app.on_configure")
        self.on_after_configure = Signal(name="app.on_after_configure", providing_args={"source"})
        self.conf = Settings(changes, namespace=namespace, on_load=lambda conf: self._announce_configured())
        if source is not None:
            self.conf.load_object(source, namespace=namespace)

    def _finish_configuration(self) -> None:
        self._announce_configured()

    def _announce_configured(self) -> None:
        if self._announced:
            return
        self._announced = True
        self.on_configure.send(sender=self)
        self.on_after_configure.send(sender=self, source=self.conf)

    @property
    def configured(self) -> bool:
        """Whether the configuration was read."""
        return self._announced

    def config_from_object(
        self, obj: Any, silent: bool = False, force: bool = False, namespace: str | None = None
    ) -> None:
        """Take the configuration from a module's name, an object or a dict, when it is first needed.

        :param namespace: only names that start with it count, without it: ``namespace="CELERY"`` for Django.
        :param silent: a module that cannot be imported is no error.
        :param force: read it now.
        """
        self.conf.load_object(obj, namespace=namespace, silent=silent, force=force)

    def config_from_envvar(self, variable_name: str, silent: bool = False, force: bool = False) -> bool:
        """Take the configuration from the module that an environment variable names; say whether it names one."""
        return self.conf.load_envvar(variable_name, silent=silent, force=force)

    def add_defaults(self, fun: Any) -> None:
        """Add settings that win over the configuration source; a callable is asked when they are first needed."""
        self.conf.add_defaults(fun)

    def add_periodic_task(
        self, schedule: Any, sig: Any, args: Any = (), kwargs: Any = None, name: str | None = None, **opts: Any
    ) -> str:
        """Add an entry to ``beat_schedule`` and return its key: the name, or the call in words."""
        if isinstance(sig, Signature):
            sig = sig.clone(args, kwargs)
        else:
            sig = Signature(sig, args, kwargs, app=self)
        key = name or reprcall(sig.task, sig.args, sig.kwargs)
        entry = {
            "schedule": schedule,
            "task": sig.task,
            "args": sig.args,
            "kwargs": sig.kwargs,
            "options": {**sig.options, **opts},
        }
        self.conf.beat_schedule = {**(self.conf.beat_schedule or {}), key: entry}
        return key

    def either(self, default_key: str, *defaults: Any) -> Any:
        """Return the first of these that is not None, else the setting."""
        for value in defaults:
            if value is not None:
                return value
        return self.conf[default_key]

    def setup_security(
        self,
        allowed_serializers: Any = None,
        key: Any = None,
        key_password: Any = None,
        cert: Any = None,
        store: Any = None,
        digest: str | None = None,
        serializer: str = "json",
    ) -> None:
        """Sign and verify message bodies with X.509 certificates; see :func:`umbel.security.setup_security`."""
        from umbel.security import setup_security  # needs the cryptography package

        setup_security(allowed_serializers, key, key_password, cert, store, digest, serializer, app=self)

    @property
    def timezone(self) -> tzinfo:
        """The zone of ``conf.timezone``; without one UTC, or this machine's with ``enable_utc`` off."""
        zone = self.conf.timezone
        if isinstance(zone, tzinfo):
            return zone
        if zone:
            return UTC if str(zone).upper() == "UTC" else ZoneInfo(str(zone))
        local = datetime.now().astimezone().tzinfo
        return UTC if self.conf.enable_utc or local is None else local

    def uses_utc_timezone(self) -> bool:
        """Say whether the app's zone is UTC."""
        return self.timezone is UTC or str(self.timezone) == "UTC"

    def now(self) -> datetime:
        """Return the current moment in the app's zone."""
        return self.clock.now().astimezone(self.timezone)
