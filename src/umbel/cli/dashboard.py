"""``umbel dashboard``: the web page that shows what workers do."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from umbel.cli.errors import EX_CONFIG, EX_UNAVAILABLE, Trouble
from umbel.cli.listening import check_host
from umbel.cli.options import COMMA_LIST, Target, command

if TYPE_CHECKING:
    from umbel.dashboard.access import Access

DOCS = "docs/dashboard.md"
_MISSING = "the dashboard needs packages that are not installed: pip install 'umbel[dashboard]'"
_AUTH = (
    "and nothing is asked of those who come; make an account: umbel dashboard --auth dashboard.accounts "
    "--add-user NAME, and start it with --auth dashboard.accounts"
)


@command("dashboard", epilog=f"How to put it behind a proxy, or into your own application: {DOCS}")
@click.option("--host", "--address", default="127.0.0.1", show_default=True, help="Listen there.")
@click.option("-p", "--port", type=click.IntRange(0, 65535), default=5555, show_default=True, help="On this port.")
@click.option("--prefix", default="", metavar="PATH", help="Answer under this path, as a proxy may want it.")
@click.option(
    "--auth",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="UMBEL_DASHBOARD_AUTH",
    show_envvar=True,
    metavar="FILE",
    help="The file of accounts; without it only this machine is answered.",
)
@click.option("--read-only", is_flag=True, help="Show all and change nothing, whoever asks.")
@click.option("--allow-host", "hosts", type=COMMA_LIST, metavar="LIST", help="Names that it may be called by.")
@click.option("--trust-header", metavar="NAME", help="A proxy names in this header who has signed in there.")
@click.option("--trust-from", type=COMMA_LIST, metavar="LIST", help="Addresses of that proxy; others are not believed.")
@click.option(
    "--trust-role",
    type=click.Choice(["viewer", "operator"]),
    default="viewer",
    show_default=True,
    help="What those may do whom it names.",
)
@click.option("--certfile", type=click.Path(exists=True, dir_okay=False), help="Serve HTTPS with this certificate.")
@click.option("--keyfile", type=click.Path(exists=True, dir_okay=False), help="And its key.")
@click.option("--open", "browse", is_flag=True, help="Show it in a browser.")
@click.option("--add-user", metavar="NAME", help="Add an account to the --auth file, or change it, and stop.")
@click.option("--add-token", metavar="NAME", help="Add a token for programs to the --auth file, print it, and stop.")
@click.option("--role", type=click.Choice(["viewer", "operator"]), default="operator", show_default=True,
              help="What a new account may do.")  # fmt: skip
def dashboard(target: Target, **given: Any) -> None:
    """Show in a browser what workers do, and steer them.

    \b
    Examples:
      umbel -A proj dashboard --open
      umbel dashboard --auth dashboard.accounts --add-user ann --role viewer
      umbel -A proj dashboard --host 0.0.0.0 --auth dashboard.accounts
    """
    if given["add_user"] or given["add_token"]:
        _add(given)
        return
    try:
        from umbel.dashboard.serving import make_server, serve
    except ImportError as error:
        raise Trouble(f"{_MISSING} ({error})", EX_CONFIG) from error
    access = _access(given)
    check_host(given["host"])
    app = target.load_tasks() if target.app_name or not target.broker else target.load(needed=False)
    try:
        server = make_server(
            app,
            access,
            name=target.app_name,
            host=given["host"],
            port=given["port"],
            prefix=_prefix(given["prefix"]),
            certfile=given["certfile"],
            keyfile=given["keyfile"],
            ready=lambda url: _ready(target, url, browse=given["browse"]),
        )
        ended = serve(server)
    finally:
        app.close()
    if not ended:
        raise Trouble(
            f"the dashboard cannot listen on {given['host']} port {given['port']}; -p names another port",
            EX_UNAVAILABLE,
        )


def _ready(target: Target, url: str, *, browse: bool) -> None:
    if not target.quiet:
        click.echo(f"The dashboard is at {url} (Ctrl+C ends it).", err=True)
    if browse:
        import webbrowser

        webbrowser.open(url)


def _prefix(given: str) -> str:
    path = given.strip("/")
    if any(part in ("", ".", "..") for part in path.split("/")) and path:
        raise click.BadParameter(f"{given!r} is no path", param_hint="--prefix")
    return f"/{path}" if path else ""


def _access(given: dict[str, Any]) -> Access:
    """Return the rules. Ends with exit code 78 for an address or a name by which others come without being asked."""
    from umbel.dashboard.access import ROLES, Access, is_loopback, read_accounts

    file: Path | None = given["auth"]
    accounts = read_accounts(_read(file), str(file)) if file is not None else None
    if bool(given["trust_header"]) != bool(given["trust_from"]):
        raise Trouble("--trust-header and --trust-from go together: whom may be believed, and what", EX_CONFIG)
    if bool(given["certfile"]) != bool(given["keyfile"]):
        raise Trouble("--certfile and --keyfile go together", EX_CONFIG)
    try:
        access = Access(
            accounts=accounts,
            trusted_header=given["trust_header"],
            trusted_from=given["trust_from"] or (),
            trusted_role=ROLES[given["trust_role"]],
            hosts=given["hosts"] or (),
            read_only=given["read_only"],
        )
    except ValueError as error:
        raise Trouble(f"--trust-from: {error}", EX_CONFIG) from error
    if not access.guarded and not is_loopback(given["host"]):
        raise Trouble(f"{given['host']} can be reached from other machines, {_AUTH}", EX_CONFIG)
    if not access.guarded and access.foreign:
        raise Trouble(
            f"--allow-host {','.join(access.foreign)}: by such a name others are led here, {_AUTH}", EX_CONFIG
        )
    return access


def _read(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8")
        mode = file.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise Trouble(f"--auth {file} cannot be read: {error}", EX_CONFIG) from error
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise Trouble(f"--auth {file} can be read by others; chmod 600 {file}", EX_CONFIG)
    return text


def _add(given: dict[str, Any]) -> None:
    """Write an account into the file: all of it or nothing, readable by its owner alone."""
    from umbel.dashboard.access import hash_password, hash_token

    file: Path | None = given["auth"]
    if file is None:
        raise Trouble("say where the accounts are kept: --auth FILE", EX_CONFIG)
    name = given["add_user"] or given["add_token"]
    if not name.isprintable() or ":" in name or name.startswith("#") or name != name.strip():
        raise Trouble(f"{name!r} cannot be a name: no colon, no space around it, no # at its start", EX_CONFIG)
    token = ""
    if given["add_user"]:
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
        if len(password) < 8:
            raise Trouble("a password needs 8 characters at least", EX_CONFIG)
        kept = hash_password(password)
    else:
        token = secrets.token_urlsafe(32)
        kept = hash_token(token)
    lines = _read(file).splitlines() if file.exists() else []
    # One name may have a password and a token; each replaces its own kind only.
    kind = kept.partition("$")[0]
    lines = [line for line in lines if not (line.startswith(f"{name}:") and f":{kind}$" in line)]
    _write(file, "\n".join([*lines, f"{name}:{given['role']}:{kept}"]) + "\n")
    if token:
        click.echo(token)
    click.echo(f"{name} ({given['role']}) is in {file}.", err=True)


def _write(file: Path, text: str) -> None:
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as written:
            written.write(text)
        os.replace(part, file)
    except OSError as error:
        raise Trouble(f"--auth {file} cannot be written: {error.strerror}", EX_CONFIG) from error
