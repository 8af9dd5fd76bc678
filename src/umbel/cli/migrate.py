"""The ``migrate`` command: messages from one broker to another."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import click

from umbel.cli.errors import EX_PARTLY, Trouble
from umbel.cli.options import COMMA_LIST, Target, command


@command(
    "migrate",
    epilog="Examples: umbel -A proj migrate redis://old/0 amqp://new// -a;"
    " umbel -A proj migrate sqlite:///proj.db redis://new/0 -a --to-celery",
)
@click.argument("source")
@click.argument("destination")
@click.option("-n", "--limit", type=click.IntRange(1), metavar="N", help="At most so many messages.")
@click.option("-t", "--timeout", type=click.FloatRange(0), metavar="SEC", help="Wait so long for more of them.")
@click.option("-a", "--ack-messages", is_flag=True, help="Move them: take them away from the source.")
@click.option("-T", "--tasks", type=COMMA_LIST, metavar="LIST", help="Only these tasks.")
@click.option(
    "-Q", "--queues", type=COMMA_LIST, metavar="LIST",
    help="Only these queues; else all. OLD:NEW gives one another name.",
)  # fmt: skip
@click.option("-F", "--forever", is_flag=True, help="Go on until interrupted; needs -a.")
@click.option(
    "--to-celery", is_flag=True, help="For Celery's workers: with what waits for its time, as Celery writes it."
)
def migrate(target: Target, source: str, destination: str, **options: Any) -> None:
    """Copy the messages that wait at SOURCE to DESTINATION, both URLs; with -a, move them.

    A message is taken away only when the other broker has confirmed it, so that after a crash it may be in both and
    never in none. What waits for its time stays where it is, unless --to-celery is given: Celery's workers hold such
    messages themselves. SOURCE and DESTINATION may then be the same.

    All queues with messages are looked at, those too that the app does not declare. RabbitMQ does not say which it has:
    there it is those of the app, and -Q names others. What stays at the source is told at the end.
    """
    if options["forever"] and not options["ack_messages"]:
        raise click.UsageError("--forever needs --ack-messages: a copy of what stays would be made again and again")
    if source == destination and not options["to_celery"]:
        raise click.UsageError("SOURCE and DESTINATION are the same; only --to-celery has something to do there")
    from umbel.contrib.moving import Refused, open_other, queues_of

    app = target.load(needed=False)
    here = open_other(source)
    try:
        known = queues_of(source)
        names = _names(app, options["queues"], known or ())
        there = open_other(destination)
        try:
            there.declare([_spec(app, name) for name in names.values()])
            count = 0
            for found in _run(here, there, names, options, same=source == destination):
                count += 1
                if not target.quiet:
                    click.echo(f"Migrating task {count}: {found.id} of {found.queue}")
        except Refused as error:
            raise Trouble(f"{error}; it is still at the source, and so is what was to follow", EX_PARTLY) from error
        finally:
            there.close()
        click.echo(f"{count} messages {'moved' if options['ack_messages'] else 'copied'}.")
        _tell(here, names)
        if known is None and not options["queues"]:
            looked = ", ".join(names)
            click.echo(f"Looked at {looked}: this broker does not say which others it has; -Q names them.", err=True)
        _tell_others(here, set(known or ()) - names.keys())
    finally:
        here.close()
        app.close()


def _names(app: Any, given: list[str] | None, known: Collection[str]) -> dict[str, str]:
    """Return the names of the queues here, and those they have there."""
    if not given:
        return {name: name for name in dict.fromkeys([*(spec.name for spec in app.queues(None)), *known])}
    pairs = (name.partition(":") for name in given)
    return {old: new or old for old, _, new in pairs}


def _spec(app: Any, name: str) -> Any:
    """Return how a queue is to be declared there: as the app says, so that its workers find what they expect."""
    from umbel.interfaces import QueueSpec

    return app.router.queues.get(name) or QueueSpec(name=name, exchange=name, routing_key=name)


def _run(here: Any, there: Any, names: dict[str, str], options: dict[str, Any], *, same: bool) -> Iterator[Any]:
    from umbel.contrib.moving import Found, Moving, for_celery
    from umbel.interfaces import Outgoing, QueueSpec

    wanted = set(options["tasks"] or ())

    def decide(found: Found) -> Outgoing | None:
        if wanted and found.task not in wanted:
            return None
        made = for_celery(found) if options["to_celery"] else found
        return None if made is None else made.outgoing(QueueSpec(name=names[found.queue]))

    patience = float("inf") if options["forever"] else options["timeout"] or 0.0
    moving = Moving(here, there, names, decide, limit=options["limit"], patience=patience)
    if options["to_celery"]:
        yield from moving.scheduled(keep=not options["ack_messages"])
    # In the same place they are Celery's already.
    if not same:
        yield from moving.move() if options["ack_messages"] else moving.copy()


def _tell(here: Any, names: dict[str, str]) -> None:
    """Say what is still at the source and will not go from there by itself."""
    from umbel.interfaces import Place

    said = {
        Place.SCHEDULED: "wait for their time at the source and were left there.",
        Place.HELD: "are held by workers at the source: stop those and migrate again.",
        Place.DEAD: "are dead letters at the source: see 'umbel dead'.",
    }
    for place, text in said.items():
        count = sum(here.size(name, place) for name in names)
        if count:
            click.echo(f"{count} {text}", err=True)


def _tell_others(here: Any, names: Collection[str]) -> None:
    """Say which queues were not asked for, and have something."""
    left = {name: count for name in sorted(names) if (count := here.size(name))}
    if left:
        said = ", ".join(f"{count} in {name!r}" for name, count in left.items())
        click.echo(f"Not asked for, and left at the source: {said}.", err=True)
