"""A TCP proxy before a real server that closes connections when their answer comes: the server has done the work."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


class AnswerCutter:
    """The proxy.

    Attributes:
        url: its address.
        requests: first lines of the requests that it passed on.
        cut: first words of requests whose next answer is cut, such as "POST /train-jobs"; each is cut once.
        on_cut: called before the connection is closed.
    """

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = str(parts.hostname), int(parts.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[str] = []
        self.cut: list[str] = []
        self.on_cut: Callable[[], object] = lambda: None
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Stop accepting connections."""
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                last: list[str] = []
                for part, ends in ((self._send_requests, (client, server)), (self._send_answers, (server, client))):
                    threading.Thread(target=part, args=(*ends, last), daemon=True).start()

    def _send_requests(self, client: socket.socket, server: socket.socket, last: list[str]) -> None:
        with suppress(OSError), _closing(client, server):
            while data := client.recv(2**16):
                line = data.split(b"\r\n", 1)[0]
                if line.endswith(b" HTTP/1.1"):
                    self.requests.append(line.decode())
                    last[:] = [line.decode()]
                server.sendall(data)

    def _send_answers(self, server: socket.socket, client: socket.socket, last: list[str]) -> None:
        with suppress(OSError), _closing(client, server):
            while data := server.recv(2**16):
                cut = next((words for words in self.cut if last and last[0].startswith(words)), None)
                if cut:
                    self.cut.remove(cut)
                    self.on_cut()
                    client.shutdown(socket.SHUT_RDWR)  # close() alone waits for the thread that reads from it
                    return
                client.sendall(data)


@contextmanager
def _closing(*ends: socket.socket) -> Iterator[None]:
    """Close both ends; the thread that reads from the other one ends, too."""
    try:
        yield
    finally:
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextmanager
def answer_cutter(target: str) -> Iterator[AnswerCutter]:
    """Run the proxy during the block."""
    cutter = AnswerCutter(target)
    try:
        yield cutter
    finally:
        cutter.close()
