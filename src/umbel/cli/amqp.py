"""The ``amqp`` command: RabbitMQ's own verbs, one at a time or in a shell.

One connection and one channel serve a whole shell, so that what ``basic.get`` took is acknowledged by ``basic.ack``.
The server ends a channel for whatever it refuses; what was taken and not acknowledged is in its queue again then.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable
from pprint import pformat
from typing import Any, Final

import click

from umbel.cli.errors import EX_CONFIG, EX_FAILED, Trouble
from umbel.cli.options import Target, global_options
from umbel.exceptions import CeleryError, OperationalError

_SESSION: Final = "umbel.cli.amqp"
_EMPTY: Final = "No messages in queue. basic.publish something."
_LEAVE: Final = ("exit", "quit", "q")


class Session:
    """One connection to the server of an app, made when it is first needed."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._link: Any = None
        self._channel: Any = None

    @property
    def channel(self) -> Any:
        """An open channel that confirms what is published."""
        from umbel.brokers.rabbitmq import frames

        if self._link is None or not self._link.alive:
            self._connect()
        if self._channel is None or self._channel.closed is not None:
            self._channel = self._link.channel()
            self._channel.call(frames.CONFIRM_SELECT, (False,), frames.CONFIRM_SELECT_OK)
        return self._channel

    def _connect(self) -> None:
        from umbel.connection_options import broker_options
        from umbel.drivers import mask, open_broker, split

        app = self._target.load(needed=not self._target.broker)
        url = app.urls.write
        broker: Any = open_broker(url, options=broker_options(app.conf), clock=app.clock, app_name=app.main or "")
        if not hasattr(broker, "connect"):
            shown = mask(split(url)[0])
            raise Trouble(
                f"these are RabbitMQ's commands, and the broker is {shown}: "
                "see 'umbel list queues', 'umbel purge' and 'umbel dead'",
                EX_CONFIG,
            )
        self._note(f"-> connecting to {mask(split(url)[0])}.")
        self._link = broker.connect("umbel amqp")
        self._note("-> connected.", fg="green", bold=True)

    def _note(self, text: str, **style: Any) -> None:
        if not self._target.quiet:
            self.say(text, **style)

    def say(self, text: str, **style: Any) -> None:
        """Print a line."""
        click.echo(text if self._target.no_color else click.style(text, **style))

    def close(self) -> None:
        """End the connection. A second call does nothing."""
        if self._link is not None:
            self._link.close()


@click.group("amqp", invoke_without_command=True, context_settings={"max_content_width": 100})
@global_options()
@click.pass_context
def amqp(ctx: click.Context) -> None:
    """Speak AMQP to RabbitMQ: a shell, or one command.

    Values for yes and no are true and false. What the server refuses ends with exit code 1.
    """
    if _SESSION not in ctx.meta:
        session = ctx.meta[_SESSION] = Session(ctx.find_root().ensure_object(Target))
        ctx.call_on_close(session.close)
    if ctx.invoked_subcommand is None:
        _shell(ctx)


def _verb(name: str, *arguments: tuple[Any, ...]) -> Callable[[Callable[..., None]], click.Command]:
    """Make a function a command; each argument is a name, a type and perhaps a default."""

    def decorate(function: Callable[..., None]) -> click.Command:
        @click.pass_context
        def run(ctx: click.Context, /, **values: Any) -> None:
            session: Session = ctx.meta[_SESSION]
            try:
                function(session, **values)
            except OperationalError:
                raise
            except CeleryError as error:
                raise Trouble(_refusal(error), EX_FAILED) from error
            session.say("OK", fg="green", bold=True)

        command = click.command(name, help=function.__doc__, context_settings={"help_option_names": ["-h", "--help"]})
        made = run
        for title, kind, *default in reversed(arguments):
            more = {"default": default[0]} if default else {}
            made = click.argument(title, type=kind, **more)(made)
        done: click.Command = command(made)
        amqp.add_command(done)
        return done

    return decorate


def _refusal(error: CeleryError) -> str:
    code = getattr(error, "code", None)
    return f"({code}) {error.text}" if code else str(error)  # type: ignore[attr-defined]


@_verb(
    "exchange.declare",
    ("exchange", str),
    ("type", str),
    ("passive", bool, False),
    ("durable", bool, False),
    ("auto_delete", bool, False),
)
def exchange_declare(
    session: Session, exchange: str, type: str, passive: bool, durable: bool, auto_delete: bool
) -> None:
    """Make an exchange, or with PASSIVE see whether it is there."""
    from umbel.brokers.rabbitmq import frames

    args: tuple[Any, ...] = (0, exchange, type, passive, durable, auto_delete, False, False, {})
    session.channel.call(frames.EXCHANGE_DECLARE, args, frames.EXCHANGE_DECLARE_OK)


@_verb("exchange.delete", ("exchange", str), ("if_unused", bool, False))
def exchange_delete(session: Session, exchange: str, if_unused: bool) -> None:
    """Delete an exchange; with IF_UNUSED only if nothing is bound to it."""
    from umbel.brokers.rabbitmq import frames

    session.channel.call(frames.EXCHANGE_DELETE, (0, exchange, if_unused, False), frames.EXCHANGE_DELETE_OK)


@_verb("queue.bind", ("queue", str), ("exchange", str), ("routing_key", str))
def queue_bind(session: Session, queue: str, exchange: str, routing_key: str) -> None:
    """Have a queue get what an exchange gets under a routing key."""
    from umbel.brokers.rabbitmq import frames

    session.channel.call(frames.QUEUE_BIND, frames.bind(queue, exchange, routing_key), frames.QUEUE_BIND_OK)


@_verb(
    "queue.declare", ("queue", str), ("passive", bool, False), ("durable", bool, False), ("auto_delete", bool, False)
)
def queue_declare(session: Session, queue: str, passive: bool, durable: bool, auto_delete: bool) -> None:
    """Make a queue, or with PASSIVE see whether it is there; print its messages and consumers."""
    from umbel.brokers.rabbitmq import frames

    args = frames.declare_queue(queue, passive=passive, durable=durable, auto_delete=auto_delete)
    _, (name, messages, consumers) = session.channel.call(frames.QUEUE_DECLARE, args, frames.QUEUE_DECLARE_OK)
    session.say(f"queue:{name} messages:{messages} consumers:{consumers}", fg="cyan", bold=True)


@_verb("queue.delete", ("queue", str), ("if_unused", bool, False), ("if_empty", bool, False))
def queue_delete(session: Session, queue: str, if_unused: bool, if_empty: bool) -> None:
    """Delete a queue with its messages; IF_UNUSED: if nobody reads it, IF_EMPTY: if nothing is in it."""
    from umbel.brokers.rabbitmq import frames

    args = (0, queue, if_unused, if_empty, False)
    _, (count,) = session.channel.call(frames.QUEUE_DELETE, args, frames.QUEUE_DELETE_OK)
    session.say(f"{count} messages deleted.", fg="cyan", bold=True)


@_verb("queue.purge", ("queue", str))
def queue_purge(session: Session, queue: str) -> None:
    """Discard the messages that wait in a queue. It does not ask, and there is no way back."""
    from umbel.brokers.rabbitmq import frames

    _, (count,) = session.channel.call(frames.QUEUE_PURGE, (0, queue, False), frames.QUEUE_PURGE_OK)
    session.say(f"{count} messages deleted.", fg="cyan", bold=True)


@_verb("basic.get", ("queue", str), ("no_ack", bool, False))
def basic_get(session: Session, queue: str, no_ack: bool) -> None:
    """Take a message and print it; with NO_ACK for good.

    Without, it is in the queue again when the shell ends, unless basic.ack has its delivery tag.
    """
    from umbel.brokers.rabbitmq import frames

    name, found = session.channel.call(frames.GET, (0, queue, no_ack), frames.GET_OK, frames.GET_EMPTY)
    session.say(_EMPTY if name == frames.GET_EMPTY else pformat(_dumped(found)))


def _dumped(content: Any) -> dict[str, Any]:
    tag, redelivered, exchange, key, left = content.args
    properties = dict(content.properties)
    if "headers" in properties:
        properties["application_headers"] = properties.pop("headers")
    body = content.body
    # What a sender says of its bytes need not be true.
    with contextlib.suppress(LookupError, UnicodeDecodeError):
        body = body.decode(properties["content_encoding"])
    return {
        "body": body,
        "properties": properties,
        "delivery_info": {
            "delivery_tag": tag,
            "redelivered": redelivered,
            "exchange": exchange,
            "routing_key": key,
            "message_count": left,
        },
    }


@_verb(
    "basic.publish",
    ("msg", str),
    ("exchange", str),
    ("routing_key", str),
    ("mandatory", bool, False),
    ("immediate", bool, False),
)
def basic_publish(
    session: Session, msg: str, exchange: str, routing_key: str, mandatory: bool, immediate: bool
) -> None:
    """Publish a text, and wait until the server has it; with MANDATORY it is an error if no queue takes it."""
    from umbel.brokers.rabbitmq import frames

    if immediate:
        raise Trouble("RabbitMQ has no immediate publishing: leave IMMEDIATE out", EX_FAILED)
    channel = session.channel
    returned: list[str] = []
    channel.on_content = lambda name, content: returned.append(f"({content.args[0]}) {content.args[1]}")
    properties = frames.encoded({"content_encoding": "utf-8"})
    body = msg.encode("utf-8", "surrogateescape")
    data = frames.publish(channel.number, exchange, routing_key, mandatory)
    data += frames.content(channel.number, properties, body, channel.link.frame_max)
    answer, _ = channel.ask(data, frames.ACK, frames.NACK)
    if returned:
        raise Trouble(f"the message came back: {returned[0]}", EX_FAILED)
    if answer == frames.NACK:
        raise Trouble("the queue takes no more, or could not store the message", EX_FAILED)


@_verb("basic.ack", ("delivery_tag", int))
def basic_ack(session: Session, delivery_tag: int) -> None:
    """Acknowledge what basic.get has taken, in the same shell."""
    from umbel.brokers.rabbitmq import frames

    channel = session.channel
    channel.send(channel.frame(frames.ACK, delivery_tag, False))
    # An acknowledgement is not answered: the question behind it is, unless the tag is wrong.
    channel.call(frames.QOS, (0, 0, False), frames.QOS_OK)


@amqp.command("repl")
@click.pass_context
def repl(ctx: click.Context) -> None:
    """Start the shell, as 'umbel amqp' alone does."""
    assert ctx.parent is not None
    _shell(ctx.parent)


# -- the shell -------------------------------------------------------------------------------------------------------


def _shell(ctx: click.Context) -> None:
    session: Session = ctx.meta[_SESSION]
    assert session.channel is not None  # connected before anything is asked for
    prompt = "amqp> " if sys.stdin.isatty() else ""
    with _completion() if prompt else contextlib.nullcontext():
        while True:
            try:
                words = shlex.split(input(prompt))
            except EOFError:
                return
            except KeyboardInterrupt:
                click.echo()
                continue
            except ValueError as error:
                click.echo(f"Error: {error}", err=True)
                continue
            if words and words[0].lstrip(":") in _LEAVE:
                return
            if words:
                _run(ctx, words)


def _run(ctx: click.Context, words: list[str]) -> None:
    if words[0].lstrip(":") in ("help", "h", "?"):
        words = [*words[1:], "--help"]
    elif words[0] == "repl":
        return
    try:
        with amqp.make_context(ctx.info_name, words, parent=ctx.parent, obj=ctx.obj) as below:
            below.meta[_SESSION] = ctx.meta[_SESSION]
            amqp.invoke(below)
    except click.exceptions.Exit:
        pass
    except click.ClickException as error:
        error.show()
    except OperationalError as error:
        click.echo(f"Error: {error}; the next command connects again", err=True)


@contextlib.contextmanager
def _completion() -> Any:
    """Complete the names of commands by the tabulator key, where Python can."""
    try:
        import readline
    except ImportError:
        yield
        return
    before = readline.get_completer(), readline.get_completer_delims()

    def complete(text: str, state: int) -> str | None:
        found = [f"{name} " for name in sorted(amqp.commands) if name.startswith(text)]
        return found[state] if state < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    readline.parse_and_bind("tab: complete")
    try:
        yield
    finally:
        readline.set_completer(before[0])
        readline.set_completer_delims(before[1])
