"""The ``metrics`` command: print them once, or serve them."""

from __future__ import annotations

import signal
import threading
from typing import Any

import click

from umbel.bell import Bell
from umbel.cli.errors import EX_CONFIG, EX_UNAVAILABLE, Trouble
from umbel.cli.options import COMMA_LIST, Target, command, global_options

DOCS = "docs/metrics.md"
# celery-exporter's, so that whoever comes from there keeps the address.
PORT = 9808


def _what(function: Any) -> Any:
    for option in (
        click.option(
            "--metrics",
            "sets",
            type=COMMA_LIST,
            default=("umbel",),
            metavar="LIST",
            help="Under which names: umbel, celery-exporter, flower.",
        ),
        click.option("-Q", "--queues", type=COMMA_LIST, metavar="LIST", help="These queues and not those of the app."),
    ):
        function = option(function)
    return function


@click.group("metrics", invoke_without_command=True, epilog=f"What each metric means: {DOCS}")
@global_options()
@_what
@click.pass_context
def metrics(ctx: click.Context, sets: list[str], queues: list[str] | None) -> None:
    """Print the metrics as they are now; 'metrics serve' serves them to Prometheus and KEDA.

    \b
    Examples:
      umbel -A proj metrics
      umbel -A proj metrics serve --port 9808 --enable-events
    """
    if ctx.invoked_subcommand is not None:
        return
    target = ctx.ensure_object(Target)
    app, exporter = _exporter(target, sets=sets, queues=queues)
    try:
        app.broker.open()
        exporter.start()
        # A heartbeat of every worker is asked for at the start, and comes before their replies.
        exporter.ask()
        click.echo(exporter.page()[1].decode(), nl=False)
    finally:
        exporter.close()
        app.close()


@metrics.add_command
@command("serve", epilog=f"Example: umbel -A proj metrics serve --enable-events. More: {DOCS}")
@_what
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 lets other machines read them.")
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="0 takes a free one.")
@click.option(
    "--every",
    type=click.FloatRange(1),
    default=15.0,
    show_default=True,
    metavar="SEC",
    help="Seconds between two questions to the workers: which queues they read, which tasks they have.",
)
@click.option("--enable-events", is_flag=True, help="Have all workers tell of their tasks, now and when they join.")
def serve(
    target: Target, sets: list[str], queues: list[str] | None, host: str, port: int, every: float, enable_events: bool
) -> None:
    """Serve /metrics for Prometheus and /api/v1/scale for KEDA, until stopped.

    Workers tell of their tasks if they were started with -E, or with --enable-events here.
    """
    from umbel.cli.listening import check_host
    from umbel.metrics.server import make_server

    check_host(host)
    app, exporter = _exporter(target, sets=sets, queues=queues, every=every, enable_events=enable_events)
    server = make_server(exporter, host, port)
    stopped = Bell()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.5}, daemon=True)
    exporter.start()
    thread.start()
    address, bound = server.server_address[:2]
    shown = f"[{address!s}]" if ":" in str(address) else str(address)
    click.echo(f"serving http://{shown}:{bound}/metrics", err=True)
    try:
        stopped.wait()
    finally:
        server.shutdown()
        server.server_close()
        exporter.close()
        app.close()


def _exporter(target: Target, **options: Any) -> tuple[Any, Any]:
    try:
        from umbel.metrics.exporter import Exporter
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("prometheus_client"):
            raise
        raise Trouble("metrics need prometheus_client: pip install 'umbel[metrics]'", EX_CONFIG) from error
    from prometheus_client import disable_created_metrics

    from umbel.utils.log import setup_logging

    # A series of moments beside each counter, which few look at.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    # With an app its tasks are the names; without one, those that workers say they have.
    app = target.load_tasks() if target.names_app else target.load(needed=not (target.broker or target.config))
    if not app.broker_url.startswith("memory:"):
        setup_logging(app.conf, "INFO", redirect_stdouts=False)
        return app, Exporter(app, **options)
    raise Trouble("memory:// lives in one process: nothing of it can be seen from here", EX_UNAVAILABLE)
