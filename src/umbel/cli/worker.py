"""The ``worker`` command."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import click

from umbel.cli.errors import EX_CONFIG, EX_UNAVAILABLE, Trouble
from umbel.cli.options import COMMA_LIST, Target, command
from umbel.exceptions import OperationalError

_LEVELS = ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "FATAL"]

# Tells a worker that was started anew that it is in the background already.
_RESTARTED = "UMBEL_WORKER_RESTARTED"
# Before --workdir is entered.
_STARTED_IN = os.getcwd()


@command("worker", epilog="Example: umbel -A proj worker -l info -c 4 -Q fast,slow")
@click.option("-n", "--hostname", metavar="NAME", help="Node name; %h is the host, %n the name, %d the domain.")
@click.option("-l", "--loglevel", type=click.Choice(_LEVELS, case_sensitive=False), help="Logging level.")
@click.option("-c", "--concurrency", metavar="N", help="How many tasks run at once; one per CPU if not given.")
@click.option("-P", "--pool", metavar="POOL", help="prefork, threads, solo or asyncio.")
@click.option("--processes", type=click.IntRange(1), metavar="N", help="Multiplies the processes of the pool.")
@click.option("-Q", "--queues", type=COMMA_LIST, metavar="LIST", help="Consume from these queues only.")
@click.option("-X", "--exclude-queues", type=COMMA_LIST, metavar="LIST", help="Consume from all but these.")
@click.option("-I", "--include", type=COMMA_LIST, metavar="LIST", help="Import these modules too.")
@click.option("--autoscale", metavar="MAX,MIN", help="Between so many processes, as the work needs.")
@click.option("--max-tasks-per-child", type=click.IntRange(0), metavar="N", help="Replace a process after N tasks.")
@click.option("--max-memory-per-child", type=click.IntRange(0), metavar="KIB", help="Replace a process above this.")
@click.option("--max-age-per-child", type=click.FloatRange(0), metavar="SEC", help="Replace a process of this age.")
@click.option("--time-limit", type=click.FloatRange(0), metavar="SEC", help="Kill a task after so many seconds.")
@click.option("--soft-time-limit", type=click.FloatRange(0), metavar="SEC", help="Raise an error in it before that.")
@click.option("--prefetch-multiplier", type=click.IntRange(0), metavar="N", help="Read at most N messages ahead.")
@click.option("--disable-prefetch", is_flag=True, default=None, help="Read one message at a time.")
@click.option("--purge", "--discard", "purge", is_flag=True, help="Discard what waits before starting.")
@click.option("-E", "--task-events", "--events", "task_events", is_flag=True, default=None, help="Send task events.")
@click.option("-f", "--logfile", metavar="FILE", help="Write the log here instead of standard error.")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="json: one object in each line of the log.")
@click.option("--pidfile", metavar="FILE", help="Keep the process id here.")
@click.option("--health-port", metavar="PORT", help="Answer /livez, /readyz and /metrics here; HOST:PORT for others.")
@click.option("-D", "--detach", is_flag=True, help="Run in the background.")
@click.option("--uid", help="Become this user.")
@click.option("--gid", help="Become this group.")
@click.option("--umask", help="Octal mask for new files.")
@click.option("-B", "--beat", is_flag=True, default=None, help="Send periodic tasks too; any number may do so.")
@click.option("-S", "--statedb", metavar="FILE", help="Accepted: what is revoked is kept in a store, not in a file.")
@click.option("-O", "--optimization", type=click.Choice(["default", "fair"]), hidden=True)
@click.option("-s", "--schedule-filename", "--schedule", metavar="FILE", help="For a --scheduler with a file.")
@click.option("--scheduler", metavar="CLASS", help="With -B: a scheduler of an extension instead of Umbel's own.")
@click.option("--pool-start-method", type=click.Choice(["fork", "spawn"]), help="How processes are started (fork).")
@click.option("--without-gossip", is_flag=True, hidden=True)
@click.option("--without-mingle", is_flag=True, hidden=True)
@click.option("--without-heartbeat", is_flag=True, help="Send no heartbeat events.")
@click.option("--heartbeat-interval", type=click.FloatRange(0, min_open=True), metavar="SEC", help="2 if not given.")
@click.option("--executable", hidden=True)
def worker(target: Target, **options: Any) -> None:
    """Start a worker: run the tasks of the app until stopped.

    SIGTERM or Ctrl+C once lets running tasks finish; twice, or SIGQUIT, gives them back at once.
    """
    click.get_current_context().exit(Starting(target, options).run())


class Starting:
    """The steps from the options to a running worker, in the order that they must have."""

    def __init__(self, target: Target, options: Mapping[str, Any]) -> None:
        self._target = target
        self._options = options
        self._app = self._load()

    def run(self) -> int:
        """Start the worker, wait until it ends, and return the exit code."""
        from umbel import signals
        from umbel.cli.transport import keeps_revocations, transport
        from umbel.worker.limits import refuse_unenforceable
        from umbel.worker.plan import make_plan, node_of
        from umbel.worker.shutdown import EX_RESTART

        app, options = self._app, self._options
        node = node_of(options["hostname"])
        signals.celeryd_init.send(sender=node, instance=None, conf=app.conf, options=dict(options))
        plan = self._plan = make_plan(app, options)
        where = self._where = transport(app)
        if not where.features.shared and (plan.processes > 1 or plan.forks):
            raise Trouble(
                f"{where.broker} lives in one process and -P {plan.pool} needs several; use -P threads, -P asyncio "
                "or -P solo, or a broker that processes can share: sqlite:///tasks.db",
                EX_CONFIG,
            )
        if options["statedb"] and not keeps_revocations(app):
            # Without it the worker would look as if it did what it does not.
            raise Trouble(
                f"-S {options['statedb']}: neither {where.broker} nor the result backend can keep what is revoked, and "
                "it is not kept in a file; keep results in redis:// or sqlite://, or leave the option out: then the "
                "workers that run are told, and each remembers it until it ends",
                EX_CONFIG,
            )
        refuse_unenforceable(app, plan.time_limit, alone=plan.pool == "solo" or not where.features.shared)
        _warn_of_root(app.conf.accept_content)
        if options["detach"] and os.environ.pop(_RESTARTED, None) is None:
            from umbel.cli.daemon import detach

            code = detach()
            if code is not None:
                return code
        with ExitStack() as stack:
            self._settle_in(stack)
            code = self._work()
        if code == EX_RESTART:
            _start_anew()
        return code

    def _load(self) -> Any:
        target = self._target
        app = target.load()
        if self._options["include"]:
            app.conf.include = [*app.conf.include, *self._options["include"]]
        return target.load_tasks()

    def _settle_in(self, stack: ExitStack) -> None:
        """Take the place in the system that was asked for, and begin to log."""
        from umbel.cli.daemon import detached, drop_privileges, pidfile
        from umbel.utils.log import setup_logging

        options, plan = self._options, self._plan
        if options["uid"] or options["gid"] or options["umask"]:
            drop_privileges(options["uid"], options["gid"], options["umask"])
        stack.enter_context(pidfile(options["pidfile"]))
        try:
            setup_logging(
                self._app.conf,
                plan.loglevel,
                plan.logfile,
                False if self._target.no_color else None,
                plan.hostname,
                as_json=plan.log_json,
            )
        except OSError as error:
            raise Trouble(f"--logfile {plan.logfile}: {error.strerror}", EX_CONFIG) from error
        # Logging gives a record its process name only where this module is loaded.
        import multiprocessing  # noqa: F401

        detached()

    def _work(self) -> int:
        from umbel import signals

        app, plan = self._app, self._plan
        instance = SimpleNamespace(app=app, hostname=plan.hostname, concurrency=plan.total, pool_cls=plan.pool)
        signals.worker_init.send(sender=instance)
        kept = self._storage()
        if not self._target.quiet and not plan.log_json:
            self._greet(kept)
        signals.celeryd_after_setup.send(sender=plan.hostname, instance=instance, conf=app.conf)
        self._warn_of_idle()
        purge = self._purge if self._options["purge"] else None
        try:
            if plan.pool == "solo" or not self._where.features.shared:
                from umbel.worker.inprocess import run_worker

                return run_worker(app, plan, self._where.broker, before_start=purge)
            from umbel.worker.supervisor import Supervisor

            recipe = self._recipe() if plan.start_method == "spawn" else None
            return Supervisor(app, plan, self._where.broker, before_start=purge, recipe=recipe).run()
        except OperationalError as error:
            text = " ".join(str(error).split())
            # What is printed now goes to the log, and this is for whoever started the worker.
            sys.stderr = sys.__stderr__
            raise Trouble(f"cannot reach {self._where.broker}: {text}", EX_UNAVAILABLE) from error

    def _recipe(self) -> Any:
        """Return how a process that is spawned gets the app, if the command line said where it is."""
        from umbel import aliased
        from umbel.worker.spawner import Recipe

        target = self._target
        return target.app_name and Recipe(
            app=target.app_name,
            config=target.config,
            include=self._options["include"] or (),
            as_celery=aliased.active,
            color=False if target.no_color else None,
        )

    def _storage(self) -> str:
        """Return what the broker keeps, in one line; refuse to start on less than ``durability`` asks for."""
        from umbel.cli.transport import storage
        from umbel.interfaces import Survives

        kept = storage(self._app)
        strict = self._app.conf.durability == "strict"
        if kept is None:
            if strict:
                raise Trouble(
                    f"{self._where.broker} cannot be reached, and durability='strict' wants to know what it keeps "
                    "before anything starts",
                    EX_UNAVAILABLE,
                )
            return "not known: the broker cannot be reached yet"
        if strict and kept.survives < Survives.POWER_LOSS:
            raise Trouble(
                f"durability='strict', and the broker may forget what it confirmed. {kept.text}. "
                f"{'; '.join(kept.advice) or 'For Redis: appendonly yes and appendfsync always'}",
                EX_CONFIG,
            )
        for warning in kept.warnings:
            logging.getLogger("celery.worker").warning(warning)
        return kept.text

    def _greet(self, kept: str) -> None:
        from umbel.cli.banner import banner
        from umbel.utils.log import mlevel

        level = mlevel(self._plan.loglevel)
        text = banner(self._app, self._plan, self._where, kept, tasks=level <= 20, builtins=level <= 10)
        if self._options["statedb"]:
            text += f"\n-S {self._options['statedb']} is not written: what is revoked is kept in a store."
        stream = sys.__stdout__
        if stream is not None:
            print(text, file=stream, flush=True)

    def _warn_of_idle(self) -> None:
        conf = self._app.conf
        idle = conf.idle()
        if idle:
            import logging

            logging.getLogger("celery.worker").warning(
                "Set, but without effect in this version: %s", ", ".join(sorted(idle))
            )

    def _purge(self) -> None:
        from umbel.interfaces import Place

        broker = self._app.broker
        count = sum(
            broker.purge(queue.name, place) for queue in self._plan.queues for place in (Place.READY, Place.SCHEDULED)
        )
        import logging

        logging.getLogger("celery.worker").warning("purge: Erased %d message(s) from the queue.", count)


def _start_anew() -> None:
    """Become a new worker with the same id, from the same command line: new code, new settings."""
    import logging

    logging.shutdown()
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        if stream is not None:
            stream.flush()
    os.environ[_RESTARTED] = "1"
    os.chdir(_STARTED_IN)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _warn_of_root(accept: Any) -> None:
    """Refuse to unpickle as root, which would give the machine to whoever can write to the broker."""
    if not hasattr(os, "getuid") or os.getuid() != 0:
        return
    risky = {"pickle", "application/x-python-serialize"} & set(accept)
    if risky and not os.environ.get("C_FORCE_ROOT"):
        raise Trouble(
            "a worker that accepts pickle must not run as root: whoever can write to the broker would own this "
            "machine; use --uid, take pickle out of accept_content, or set C_FORCE_ROOT=1 to do it all the same",
            EX_CONFIG,
        )
    if risky or not os.environ.get("C_FORCE_ROOT"):
        click.echo(
            "SecurityWarning: You're running the worker with superuser privileges: this is absolutely not "
            "recommended! Use --uid to run it as another user.",
            err=True,
        )
