"""A TCP proxy that treats each connection as it is told: well, or as bad networks do."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

_CHUNK = 1 << 16
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close sends RST


@dataclass(frozen=True)
class Hold:
    """From the first piece of data with `marker` on, nothing is passed on before `released`, when
    the sender has long given up."""

    marker: bytes
    released: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Fate:
    """How many bytes of a connection get through before it is reset; None: all. What has `loses` in
    it arrives, but its answer does not."""

    num_sent: int | None = None
    num_answered: int | None = None
    loses: bytes | None = None
    hold: Hold | None = None


GOOD, REFUSED = Fate(), Fate(num_sent=0)


@dataclass
class TcpProxy:
    """Passes connections on to `port`; `next_fate` is asked for each."""

    port: int
    next_fate: Callable[[], Fate] = lambda: GOOD
    num_connections: int = 0
    _listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    @contextmanager
    def running(self) -> Iterator["TcpProxy"]:
        accepting = threading.Thread(target=self._accept, daemon=True)
        accepting.start()
        try:
            yield self
        finally:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            accepting.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.num_connections += 1
            fate = self.next_fate()
            if fate is REFUSED:
                _reset(client)
                continue
            server = socket.create_connection(("127.0.0.1", self.port))
            is_lost = threading.Event()
            for pass_on in (_pass_requests, _pass_answers):
                threading.Thread(
                    target=pass_on, args=(client, server, fate, is_lost), daemon=True
                ).start()


def _pass_requests(
    client: socket.socket, server: socket.socket, fate: Fate, is_lost: threading.Event
) -> None:
    for data in _received(client, fate.num_sent, server):
        if fate.hold is not None and fate.hold.marker in data:
            _hold_back(fate.hold, data, client, server.getpeername())
            return
        if fate.loses is not None and fate.loses in data:
            is_lost.set()
        _send(server, data, client)


def _pass_answers(
    client: socket.socket, server: socket.socket, fate: Fate, is_lost: threading.Event
) -> None:
    for data in _received(server, fate.num_answered, client):
        if is_lost.is_set():
            _reset(client)
            _reset(server)
            return
        _send(client, data, server)


def _received(source: socket.socket, left: int | None, target: socket.socket) -> Iterator[bytes]:
    """What comes from `source`, at most `left` bytes; then both are reset, or it is said that no
    more comes."""
    with suppress(OSError):
        while left is None or left > 0:
            data = source.recv(_CHUNK)
            if not data:
                target.shutdown(socket.SHUT_WR)
                return
            yield data if left is None else data[:left]
            left = None if left is None else left - len(data)
    _reset(source)
    _reset(target)


def _send(target: socket.socket, data: bytes, source: socket.socket) -> None:
    """To one that is gone: its peer learns of it."""
    try:
        target.sendall(data)
    except OSError:
        _reset(source)


def _hold_back(hold: Hold, data: bytes, source: socket.socket, server: tuple[str, int]) -> None:
    """Take all that is sent until its sender gives up; deliver it when it is released, by a way of
    its own, since a server closes one that is silent."""
    while more := source.recv(_CHUNK):
        data += more
    hold.released.wait()
    with socket.create_connection(server) as late:
        late.sendall(data)
        late.recv(_CHUNK)


def _reset(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.shutdown(socket.SHUT_RDWR)
    with suppress(OSError):
        connection.close()
