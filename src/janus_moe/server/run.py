"""Serving the app on a socket, and ending politely.

First SIGTERM or SIGINT: /health turns 503, new requests are refused, those under way finish (at
most `shutdown_timeout`), while the socket keeps answering. Second signal: exit at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate

import uvicorn
from uvicorn.server import ServerState

from janus_moe.config import ServerConfig
from janus_moe.errors import ConfigError
from janus_moe.server.app import create_app, make_state
from janus_moe.server.app_state import AppState
from janus_moe.server.backend import EngineBackend

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_KEEP_ALIVE_S = 65
_BACKLOG = 2048
_LAST_WORDS_S = 2.0


class HttpServer:
    """One listening socket with the app behind it.

    listener: what `bind` returned; None means that the server binds host and port itself
    say: told in one sentence what a signal has begun

    Raises ConfigError when the address is taken or the chat template cannot be used.
    """

    def __init__(
        self,
        backend: EngineBackend,
        config: ServerConfig,
        listener: socket.socket | None = None,
        say: Callable[[str], None] = logger.info,
    ) -> None:
        self._config = config
        self._state = make_state(backend, config)
        self._socket = listener or bind(config.host, config.port)
        self._say = say
        self._uvicorn = _Uvicorn(create_app(self._state))
        self._draining: asyncio.Task[None] | None = None

    @property
    def state(self) -> AppState:
        return self._state

    @property
    def url(self) -> str:
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def run(self, on_started: Callable[[HttpServer], None] = lambda server: None) -> None:
        """Serves until `stop`; `on_started` is called once the socket is listening."""
        self._uvicorn.on_started = lambda: on_started(self)
        try:
            await self._uvicorn.serve(sockets=[self._socket])
        finally:
            if self._draining is not None:
                self._draining.cancel()
            self._state.text.close()

    def stop(self) -> None:
        """First call: finish what is under way, then end. Second call: end now."""
        running = self._state.lifecycle.num_requests
        if self._draining is None:
            self._say(_what_stops(running, self._config.shutdown_timeout))
            self._draining = asyncio.get_running_loop().create_task(self._drain())
        else:
            self._say(f"ending {_requests(running)} at once")
            self._state.lifecycle.out_of_patience.set()
            self._uvicorn.end_now()

    async def _drain(self) -> None:
        lifecycle = self._state.lifecycle
        lifecycle.start_draining()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(lifecycle.drained(), self._config.shutdown_timeout)
        if lifecycle.num_requests:
            self._say(f"ending {_requests(lifecycle.num_requests)}, the time is over")
            lifecycle.out_of_patience.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(lifecycle.drained(), _LAST_WORDS_S)
        self._uvicorn.end()


async def run_server(
    server: HttpServer, on_started: Callable[[HttpServer], None] = lambda server: None
) -> None:
    """Serves until a signal ends it. The engine may still be loading; it is not stopped here."""
    with _signals_call(server.stop):
        await server.run(on_started)


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handling, which would close the socket at once, and without its
    clock, which would wake an idle service ten times a second."""

    def __init__(self, app: object) -> None:
        config = uvicorn.Config(
            app,  # type: ignore[arg-type]
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=3,
        )
        super().__init__(config)
        self.server_state = _DatedAnswers()
        self.on_started: Callable[[], None] = lambda: None
        self._ending = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.on_started()

    async def main_loop(self) -> None:
        self.server_state.default_headers = list(self.config.encoded_headers)
        await self._ending.wait()

    def end(self) -> None:
        """Leaves requests the time that they are given to end."""
        self.should_exit = True
        self._ending.set()

    def end_now(self) -> None:
        """Leaves requests only the moment they need to say that they ended."""
        self.config.timeout_graceful_shutdown = 1
        self.end()


class _DatedAnswers(ServerState):
    """What all connections share; the headers of every answer have the time of that answer."""

    _headers: list[tuple[bytes, bytes]]

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        date = formatdate(time.time(), usegmt=True).encode()
        return [(b"date", date), *self._headers]

    @default_headers.setter
    def default_headers(self, headers: list[tuple[bytes, bytes]]) -> None:
        self._headers = headers


@contextlib.contextmanager
def _signals_call(stop: Callable[[], None]) -> Iterator[None]:
    """Signals call `stop` on the event loop; elsewhere than in the main thread there are none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


def _what_stops(running: int, timeout_s: float) -> str:
    if not running:
        return "no request is under way; stopping the workers"
    return f"finishing {_requests(running)}, up to {timeout_s:g} s; Ctrl-C again ends them at once"


def _requests(count: int) -> str:
    return f"{count} request{'' if count == 1 else 's'}"


def bind(host: str, port: int) -> socket.socket:
    """Returns a socket that listens; raises ConfigError that says what to choose instead.

    It listens at once: a socket that is only bound would not keep others from the port.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port} ({error.strerror}); {_instead(error, port)}"
        ) from error
    listener.setblocking(False)
    return listener


def _instead(error: OSError, port: int) -> str:
    if error.errno not in (errno.EADDRINUSE, errno.EACCES):
        return "choose another --host"
    other = 1024 + port if port < 1024 else port + 1
    made = f"; with make: make serve PORT={other}" if "MAKELEVEL" in os.environ else ""
    return f"choose another --port, e.g. --port {other}{made}"
