"""``umbel init``: a small project that runs, to begin with."""

from __future__ import annotations

import keyword
import re
import shlex
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final

import click

from umbel.cli.errors import EX_CANT_CREATE, EX_CONFIG, EX_REFUSED, Trouble
from umbel.cli.options import Target, command
from umbel.cli.output import JsonTrouble, as_json, is_json, output_option

DOCS = "docs/getting-started.md"
#: The files of a project, and the templates that they are made of: those of the framework, or else the common ones.
_FILES: Final = {
    "README.md": "readme",
    "$name.py": "app",
    "settings.py": "settings",
    "conftest.py": "conftest",
    "test_$name.py": "test_app",
    "requirements.txt": "requirements",
    "pyproject.toml": "pyproject",
    ".gitignore": "gitignore",
}
# A module in the project's folder is imported before one that is installed.
_TAKEN: Final = frozenset({
    "umbel", "celery", "kombu", "billiard", "click", "msgspec", "amqp", "redis", "hiredis", "starlette", "uvicorn",
    "jinja2", "rich", "textual", "prometheus_client", "flask", "pytest", "settings", "conftest", "tests",
})  # fmt: skip
_EXTRAS: Final = {
    **dict.fromkeys(("redis", "rediss", "redis+socket", "sentinel"), "redis"),
    **dict.fromkeys(("amqp", "amqps", "pyamqp"), "rabbitmq"),
}
_DEFAULT: Final = """\
# Without a broker_url one SQLite file keeps the queues and the results: .umbel/$name.db in this folder.
# broker_url = result_backend = "redis://localhost:6379/0\""""
_ONE_STORE: Final = """\
broker_url = $broker
result_backend = broker_url"""
_RESULTS_APART: Final = """\
from pathlib import Path
from urllib.parse import quote

broker_url = $broker
# RabbitMQ keeps no results. A file serves workers on this machine; for several machines name a store that all reach.
result_backend = "sqlite:///" + quote(Path(__file__).with_name("results.db").as_posix())"""


@command("init", epilog=f"What the files mean, step by step: {DOCS}")
@click.argument("folder", default=".", type=click.Path(file_okay=False, path_type=Path))
@click.option("--name", metavar="NAME", help="The app's name, and that of its module; the folder's if not given.")
@click.option(
    "--framework", type=click.Choice(["none", "flask"]), default="none", show_default=True, help="What it is part of."
)
@click.option("--force", is_flag=True, help="Write over files that are there.")
@output_option
def init(target: Target, folder: Path, name: str | None, framework: str, force: bool, output: str | None) -> None:
    """Write a small project that runs: tasks, settings and tests. In FOLDER, or in this one.

    Messages are kept in an SQLite file, unless --broker names another place. A file that is there is never written
    over without --force: then nothing is written, and the exit code is 4.

    \b
    Examples:
      umbel init shop
      umbel init shop --framework flask
      umbel init --name shop --broker redis://localhost:6379/0
    """
    # What the environment says is for this shell, and not for a file.
    broker = target.broker if "broker" in target.given else None
    name = _module(name, folder)
    try:
        made = project(name, framework=framework, broker=broker)
        _write(folder, made, force=force)
    except Trouble as trouble:
        raise JsonTrouble(trouble, DOCS) if is_json(output) else trouble from None
    steps = [
        *([f"cd {shlex.quote(str(folder))}"] if folder != Path() else []),
        "pip install -r requirements.txt",
        *_commands(name, framework),
    ]
    if is_json(output):
        data = {"folder": str(folder.absolute()), "name": name, "files": list(made), "next": steps}
        click.echo(as_json({"schema": "umbel.init/1", "data": data, "next": None}))
        return
    for path in made:
        click.echo(str(folder / path))
    if not target.quiet:
        click.echo("\nNext:\n" + "\n".join(f"  {step}" for step in steps), err=True)
        click.echo("README.md in the folder says what each does.", err=True)


def project(name: str, *, framework: str = "none", broker: str | None = None) -> dict[str, str]:
    """Return the files of a project, by their paths.

    :param broker: the URL that the settings name; None is an SQLite file. Ends the command with exit code 78 for one
        that workers cannot use, and with 4 for one with a password in it.
    """
    said = _stores(broker)
    values = {
        "name": name,
        "stores": Template(said["stores"]).substitute(name=name, broker=_quoted(broker or "")),
        "kept": said["kept"],
        "requirements": "\n".join([said["package"], *(["flask"] if framework == "flask" else []), "pytest"]),
    }
    return {Template(path).substitute(name=name): _filled(framework, part, values) for path, part in _FILES.items()}


def _filled(framework: str, part: str, values: Mapping[str, str]) -> str:
    folder = files("umbel.cli") / "starter"
    own = folder / framework / f"{part}.txt"
    template = own if own.is_file() else folder / "common" / f"{part}.txt"
    return Template(template.read_text(encoding="utf-8")).substitute(values)


def _stores(broker: str | None) -> dict[str, str]:
    """Return what the settings, the read-me and the requirements say about where messages and results are kept."""
    if broker is None:
        kept = "Messages and results are in one SQLite file, in the folder `.umbel`."
        return {"stores": _DEFAULT, "kept": kept, "package": "umbel[dashboard]"}
    from umbel.drivers import mask, open_broker, scheme_of, split

    if mask(broker) != broker:
        raise Trouble(
            "the URL has a password, and settings.py is a file that others read; leave the URL out, and set "
            "UMBEL_BROKER_URL where the app runs",
            EX_REFUSED,
        )
    if not open_broker(broker).features.shared:
        raise Trouble(
            f"{broker} lives in one process, and a worker is another one; leave --broker out to use a file", EX_CONFIG
        )
    scheme = scheme_of(split(broker)[0])
    extra = _EXTRAS.get(scheme)
    package = f"umbel[dashboard,{extra}]" if extra else "umbel[dashboard]"
    if extra == "rabbitmq":
        kept = "Messages are at the broker that `settings.py` names, results in the file `results.db`."
        return {"stores": _RESULTS_APART, "kept": kept, "package": package}
    kept = "Messages and results are at the broker that `settings.py` names."
    return {"stores": _ONE_STORE, "kept": kept, "package": package}


def _quoted(text: str) -> str:
    # With the quotes of the formatters.
    return as_json(text)


def _module(name: str | None, folder: Path) -> str:
    """Return the name of the app's module: one that can be imported, and that hides no other."""
    wanted = name or re.sub(r"\W+", "_", folder.absolute().resolve().name.lower(), flags=re.ASCII).strip("_")
    if not (wanted.isidentifier() and wanted.isascii()) or keyword.iskeyword(wanted):
        why = "it is no name for a Python module"
    elif wanted in _TAKEN or wanted in sys.stdlib_module_names:
        why = "another module has that name"
    else:
        return wanted
    said = f"the app cannot be called {wanted!r}: {why}"
    raise click.BadParameter(said if name else f"{said}; say --name NAME", param_hint="--name" if name else "FOLDER")


def _write(folder: Path, made: Mapping[str, str], *, force: bool) -> None:
    """Write all files, or none where one is there already."""
    there = [str(folder / path) for path in made if (folder / path).exists() or (folder / path).is_symlink()]
    if there and not force:
        count = f"{len(there)} files are" if len(there) > 1 else "a file is"
        raise Trouble(
            f"{count} there already, and nothing was written: {', '.join(there)}; --force writes over "
            f"{'them' if len(there) > 1 else 'it'}",
            EX_REFUSED,
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in made.items():
            # Somebody may have made it since the look.
            with open(folder / path, "w" if force else "x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise Trouble(f"{error.filename or folder} cannot be written: {error.strerror}", EX_CANT_CREATE) from error


def _commands(name: str, framework: str) -> list[str]:
    use = f"flask --app {name} run" if framework == "flask" else f"umbel -A {name} call {name}.add -a '[2, 3]'"
    return [f"umbel -A {name} dev", use, "pytest"]
