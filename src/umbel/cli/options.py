"""The options that every command takes, before or after its name, and the app that they lead to."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from umbel import aliased
from umbel.cli.errors import EX_CONFIG, Trouble

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # no generic in older releases

F = TypeVar("F", bound=Callable[..., Any])

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_ALSO = "-A and the other options of 'umbel --help' may stand here too."
_BROKER_VARIABLES = ("UMBEL_BROKER_URL", "UMBEL_BROKER_READ_URL", "UMBEL_BROKER_WRITE_URL")


class Target:
    """What the global options said, and the app once it is loaded.

    :param app: One that is there already; ``-A`` is then not looked at.
    """

    def __init__(self, app: Any = None) -> None:
        self._app = app
        self._is_there = app is not None
        self._configured = False
        #: The options that the command line itself gave, as click calls them. The others are the environment's.
        self.given: set[str] = set()
        self.app_name: str | None = None
        self.broker: str | None = None
        self.result_backend: str | None = None
        self.config: str | None = None
        self.workdir: str | None = None
        self.no_color = False
        self.quiet = False

    def load(self, *, needed: bool = True) -> Any:
        """Return the app that the options mean, its settings overridden by them; its task modules are not imported.

        Ends the command with exit code 78 when there is none. Without ``needed`` an app with no tasks will do.
        """
        self._enter()
        # The environment wins over all that a module configures, also over what it configures late.
        if self.broker:
            # -b is where everything goes. What the environment says is the broker_url of any program: the app, or the
            # environment, may read or write elsewhere.
            names = _BROKER_VARIABLES if "broker" in self.given else _BROKER_VARIABLES[:1]
            os.environ.update(dict.fromkeys(names, self.broker))
        if self.result_backend:
            os.environ["UMBEL_RESULT_BACKEND"] = self.result_backend
        from umbel.app import Umbel
        from umbel.loading import find_app

        app = self._app
        if app is not None:
            pass
        elif self.app_name:
            app = _guarded(f"-A {self.app_name}", lambda: find_app(str(self.app_name), Umbel))
        elif needed:
            raise Trouble("no app was given; say where it is: -A module, or -A module:attribute", EX_CONFIG)
        else:
            app = Umbel("umbel")
        if self.config and not self._configured:
            app.config_from_object(self.config)
        app.set_default()
        self._app, self._configured = app, True
        return app

    @property
    def names_app(self) -> bool:
        """Whether it is said which app is meant: by ``-A``, or because it is there already."""
        return self._is_there or self.app_name is not None

    @property
    def app(self) -> Any:
        """The app, or one with no tasks where the options name none: for commands that were written for Celery."""
        return self.load(needed=False)

    def load_tasks(self) -> Any:
        """Return the app with all its task modules imported."""
        app = self.load()

        def load() -> None:
            app.import_default_modules()
            app.finalize()

        _guarded(f"the tasks of -A {self.app_name}" if self.app_name else "the tasks of the app", load)
        return app

    def _enter(self) -> None:
        if self.workdir:
            try:
                os.chdir(self.workdir)
            except OSError as error:
                raise Trouble(f"--workdir {self.workdir}: {error.strerror}", EX_CONFIG) from error
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())


def own_command() -> list[str]:
    """Return the words that start this command line anew, under the alias where this process runs under it."""
    return [sys.executable, "-m", "umbel", *(["--as-celery"] if aliased.active else [])]


def _guarded(what: str, load: Callable[[], Any]) -> Any:
    """Run the app's own code; what it raises becomes one line that says where to look."""
    from umbel.exceptions import ImproperlyConfigured

    try:
        return load()
    except ImproperlyConfigured:
        raise
    # The wall around the modules of the user: at import they may raise anything.
    except Exception as error:
        if os.environ.get("UMBEL_TRACEBACK"):
            traceback.print_exc()
        raise Trouble(_where(what, error), EX_CONFIG) from error


def _where(what: str, error: Exception) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError) and error.filename:
        place = f" ({error.filename}, line {error.lineno})"
    text = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError) and error.name == "celery":
        text += "; import umbel instead, or give --as-celery"
    return f"{what} cannot be imported: {type(error).__name__}: {text}{place}; UMBEL_TRACEBACK=1 shows the way there"


def _remember(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        # Not given after the command, an option keeps what was given before it.
        if value:
            target = ctx.find_root().ensure_object(Target)
            setattr(target, name, value)
            if param.name and ctx.get_parameter_source(param.name) is ParameterSource.COMMANDLINE:
                target.given.add(param.name)

    return callback


def global_options(*, top: bool = False) -> Callable[[F], F]:
    """Add the options that every command takes; the environment is read at the top only."""

    def option(*names: str, field: str, env: list[str] | None = None, **more: Any) -> Callable[[F], F]:
        return click.option(
            *names,
            expose_value=False,
            callback=_remember(field),
            envvar=env if top else None,
            hidden=not top,
            **more,
        )

    options = [
        option("-A", "--app", field="app_name", metavar="APP", env=["UMBEL_APP", "CELERY_APP", "APP"],
               help="Where the app is: module, module:attribute or package."),
        option("-b", "--broker", field="broker", metavar="URL",
               env=["UMBEL_BROKER_URL", "CELERY_BROKER_URL", "BROKER_URL"], help="Use this broker."),
        option("--result-backend", field="result_backend", metavar="URL",
               env=["UMBEL_RESULT_BACKEND", "CELERY_RESULT_BACKEND", "RESULT_BACKEND"], help="Keep results here."),
        option("--config", field="config", metavar="MODULE", env=["UMBEL_CONFIG_MODULE", "CELERY_CONFIG_MODULE"],
               help="Read settings from this module."),
        option("--workdir", field="workdir", metavar="DIR", help="Change to this folder first."),
        option("-C", "--no-color", field="no_color", is_flag=True, env=["NO_COLOR"], help="Print no colours."),
        option("-q", "--quiet", field="quiet", is_flag=True, help="Print no more than was asked for."),
    ]  # fmt: skip

    def decorate(function: F) -> F:
        for add in reversed(options):
            function = add(function)
        return function

    return decorate


def command(name: str, **attributes: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function a command that also takes the global options; its first argument is the :class:`Target`."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return function(click.get_current_context().ensure_object(Target), *args, **kwargs)

        epilog = "\n\n".join(filter(None, (attributes.get("epilog"), _ALSO)))
        options: dict[str, Any] = {"context_settings": _CONTEXT, **attributes, "epilog": epilog}
        make: Callable[[Callable[..., Any]], click.Command] = click.command(name, **options)
        return make(global_options()(wrapped))

    return decorate


class CommaList(ParamType):
    """Names with commas between them."""

    name = "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        """Return the names without the empty ones."""
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return list(value)


COMMA_LIST = CommaList()
