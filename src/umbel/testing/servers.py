"""Private servers for tests: on a free loopback port, in a folder of their own, gone afterwards, however that comes."""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import pytest

from umbel.testing.guard import Guard

_START_TIMEOUT = 10.0
_RABBIT_START_TIMEOUT = 120.0
_RABBIT_INSTALL = "apt-get install rabbitmq-server"
# A process in the node that deletes what clients have declared whenever somebody connects to its port.
_CLEANER = """
    Made = fun(<<>>) -> false; (<<"amq.", _/binary>>) -> false; (_) -> true end,
    Clear = fun() ->
        [rabbit_amqqueue:delete(Q, false, false, <<"tests">>) || Q <- rabbit_amqqueue:list(<<"/">>)],
        [rabbit_exchange:delete(element(2, X), false, <<"tests">>) || X <- rabbit_exchange:list(<<"/">>),
            Made(element(4, element(2, X)))]
    end,
    Self = self(),
    spawn(fun() ->
        {ok, L} = gen_tcp:listen(%d, [binary, {active, false}, {ip, {127, 0, 0, 1}}, {reuseaddr, true}]),
        Self ! listening,
        Serve = fun Again() ->
            {ok, S} = gen_tcp:accept(L),
            Answer = case catch Clear() of {'EXIT', _} -> <<"no">>; _ -> <<"ok">> end,
            gen_tcp:send(S, Answer), gen_tcp:close(S), Again()
        end,
        Serve()
    end),
    receive listening -> ok after 5000 -> failed end.
"""


_guard = Guard()
_ports = random.SystemRandom()
atexit.register(_guard.close)


def require(binary: str, install: str) -> str:
    """Return the path of a server's program; without it fail where ``CI`` is set, else skip, saying how to install."""
    path = shutil.which(binary)
    if path is None:
        reason = f"{binary} was not found; install it with: {install}"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return path


def free_port() -> int:
    """Return a loopback port that nothing listens on now.

    None of those that the system gives to connections: one of them would have it before a server has started.
    """
    for _ in range(100):
        port = _ports.randrange(10240, 32768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port on 127.0.0.1 between 10240 and 32767")


def _started(command: list[str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _guard.watch(process.pid)
    return process


def _await(process: subprocess.Popen[bytes], timeout: float) -> None:
    """Wait for the end of a process that was told to end, and kill it if that takes too long."""
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _guard.forget(process.pid)


class RedisServer:
    """A redis-server of one's own. Used by one thread; ``with RedisServer() as server`` starts and stops it.

    ``appendonly`` makes it keep its data over :meth:`kill` and :meth:`restart`. Only the process that was started here
    is ever signalled.
    """

    def __init__(self, *, appendonly: bool = False, settings: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self.appendonly = appendonly
        self._settings = dict(settings or {})
        self._folder = tempfile.TemporaryDirectory(prefix="umbel-redis-")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """The id of the running process, or None."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start it and wait until it answers. A second call does nothing."""
        if self._process is not None:
            return
        binary = require("redis-server", "apt-get install redis-server")
        settings = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": self._folder.name,
            "save": "",
            "databases": "16",
        }
        settings["appendonly"] = "yes" if self.appendonly else "no"
        # Every write is on disk before its answer, so that a kill loses nothing that was confirmed.
        settings["appendfsync"] = "always"
        settings["logfile"] = str(Path(self._folder.name) / "redis.log")
        settings.update(self._settings)
        command = [binary, *(word for name, value in settings.items() for word in (f"--{name}", value))]
        _guard.watch(self._folder.name)
        self._process = _started(command)
        self._until_answering(self._process)

    def _until_answering(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._answers():
            if process.poll() is not None or time.monotonic() > deadline:
                log = Path(self._folder.name) / "redis.log"
                said = log.read_text() if log.exists() else ""
                self.stop()
                raise RuntimeError(f"redis-server did not start on port {self.port}: {said}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def kill(self) -> None:
        """End it at once, as a power cut would (SIGKILL)."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in order (SIGTERM). A second call does nothing."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        _await(process, _START_TIMEOUT)

    def restart(self) -> None:
        """Stop it, if it runs, and start it again on the same port and folder."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop it and delete its folder."""
        self.stop()
        self._folder.cleanup()
        _guard.forget(self._folder.name)

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RabbitMQServer:
    """A RabbitMQ node of one's own, with an Erlang port mapper of its own. Used by one thread.

    It takes some ten seconds to start, so have one for a whole test run. Users are ``guest`` alone, the virtual host is
    ``/``, and what is durable is kept over :meth:`kill` and :meth:`restart`. ``settings`` are lines of rabbitmq.conf.
    Only processes that were started here are ever signalled.
    """

    def __init__(self, *, settings: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self._ports = self.port, free_port(), free_port(), free_port()
        self._settings = dict(settings or {})
        self._folder = tempfile.TemporaryDirectory(prefix="umbel-rabbitmq-")
        self._node: subprocess.Popen[bytes] | None = None
        self._mapper: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of the virtual host ``/``."""
        return self.url_of("/")

    def url_of(self, virtual_host: str) -> str:
        """The URL of a virtual host."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{quote(virtual_host, safe='')}"

    @property
    def pid(self) -> int | None:
        """The id of the running node's process, or None."""
        return self._node.pid if self._node is not None else None

    def start(self) -> None:
        """Start it and wait until it accepts clients. A second call does nothing."""
        if self._node is not None:
            return
        environment = self._environment(self._program())
        if self._mapper is None:
            mapper = [require("epmd", _RABBIT_INSTALL), "-port", str(self._ports[2]), "-address", "127.0.0.1"]
            _guard.watch(self._folder.name)
            self._mapper = _started(mapper)
        with (self._path / "console.log").open("ab") as console:
            self._node = subprocess.Popen(
                [str(self._program())],
                env=environment,
                cwd=self._path,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )
        _guard.watch(self._node.pid)
        self._until_accepting(self._node)

    @property
    def _path(self) -> Path:
        return Path(self._folder.name)

    @staticmethod
    def _program() -> Path:
        # Not the command in the path: that one changes to the user of the system's own node.
        for folder in ("/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin", "/opt/homebrew/opt/rabbitmq/sbin"):
            if (program := Path(folder) / "rabbitmq-server").exists():
                return program
        return Path(require("rabbitmq-server", _RABBIT_INSTALL))

    def _environment(self, program: Path) -> dict[str, str]:
        port, distribution, mapper, _ = self._ports
        lines = {
            "listeners.tcp.1": f"127.0.0.1:{port}",
            "disk_free_limit.absolute": "20MB",
            "vm_memory_high_watermark.absolute": "1GB",
            "log.file.level": "info",
            **self._settings,
        }
        (self._path / "rabbitmq.conf").write_text("".join(f"{name} = {value}\n" for name, value in lines.items()))
        (self._path / "plugins").write_text("[].\n")
        return {
            "PATH": os.environ.get("PATH", ""),
            "LANG": "C.UTF-8",
            "HOME": str(self._path),
            "ERL_EPMD_PORT": str(mapper),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"umbel{port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_CONF_ENV_FILE": str(self._path / "no-such-file"),
            "RABBITMQ_CONFIG_FILE": str(self._path / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self._path / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._path / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(self._path / "data"),
            "RABBITMQ_LOG_BASE": str(self._path / "log"),
            "RABBITMQ_PID_FILE": str(self._path / "pid"),
            # The script then becomes the node instead of watching over it, so its process is the one we started.
            "RABBITMQ_ALLOW_INPUT": "yes",
            # One scheduler that sleeps when idle: the machine belongs to the tests.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-noinput +S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none "
            "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    def _until_accepting(self, node: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _RABBIT_START_TIMEOUT
        while not self._accepts():
            if node.poll() is not None or time.monotonic() > deadline:
                said = (self._path / "console.log").read_text(errors="replace")[-4000:]
                self.stop()
                raise RuntimeError(f"rabbitmq-server did not start on port {self.port}: {said}")
            time.sleep(0.1)

    def _accepts(self) -> bool:
        """Whether it begins a conversation: the port is open some time before that."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2.0) as connection:
                connection.sendall(b"AMQP\0\0\x09\x01")
                return connection.recv(1) == b"\x01"
        except OSError:
            return False

    def log(self) -> str:
        """Return what it has logged so far."""
        return "".join(path.read_text(errors="replace") for path in sorted(self._path.glob("log/*.log")))

    def add_virtual_host(self, name: str) -> str:
        """Make an empty virtual host and return its URL."""
        self._control("add_vhost", name)
        self._control("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
        return self.url_of(name)

    def clear(self) -> None:
        """Delete every queue, and every exchange that is not the server's own, of the virtual host ``/``."""
        # The node does it on a word from here: a program that asks it takes longer than most tests.
        try:
            self._await_cleared()
        except OSError:
            self.evaluate(_CLEANER % self._ports[3])
            self._await_cleared()

    def _await_cleared(self) -> None:
        with socket.create_connection(("127.0.0.1", self._ports[3]), timeout=_RABBIT_START_TIMEOUT) as connection:
            if connection.recv(2) != b"ok":
                raise ConnectionError("the node did not finish")

    def evaluate(self, erlang: str) -> str:
        """Have the node evaluate an Erlang expression; return the value. For what no client can ask for."""
        caller = shutil.which("erl_call")
        if caller is None:
            return self._control("eval", erlang).strip()
        cookie = (self._path / ".erlang.cookie").read_text()
        done = subprocess.run(
            [caller, "-n", f"umbel{self.port}@localhost", "-c", cookie, "-e"],
            env=self._environment(self._program()),
            input=erlang + "\n",
            check=False,
            capture_output=True,
            text=True,
            timeout=_RABBIT_START_TIMEOUT,
        )
        if done.returncode or not done.stdout.startswith("{ok, "):
            raise RuntimeError(f"erl_call: {done.stdout}{done.stderr}")
        return done.stdout.strip().removeprefix("{ok, ").removesuffix("}")

    def _control(self, *words: str) -> str:
        program = self._program().with_name("rabbitmqctl")
        done = subprocess.run(
            [str(program), "--quiet", *words],
            env=self._environment(program),
            check=False,
            capture_output=True,
            text=True,
            timeout=_RABBIT_START_TIMEOUT,
        )
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    def kill(self) -> None:
        """End it at once, as a power cut would (SIGKILL)."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in order (SIGTERM). A second call does nothing."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        node, self._node = self._node, None
        if node is None:
            return
        node.send_signal(number)
        _await(node, _RABBIT_START_TIMEOUT)

    def restart(self) -> None:
        """Stop it, if it runs, and start it again on the same port and folder."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop it and its port mapper, and delete its folder."""
        self.stop()
        mapper, self._mapper = self._mapper, None
        if mapper is not None:
            mapper.terminate()
            _await(mapper, _START_TIMEOUT)
        with contextlib.suppress(OSError):
            self._folder.cleanup()
        _guard.forget(self._folder.name)

    def __enter__(self) -> RabbitMQServer:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
