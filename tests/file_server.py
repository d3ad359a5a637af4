"""A file server on 127.0.0.1 that fails on demand, for the tests of downloads."""

import http.server
import re
import socket
import struct
import threading
from contextlib import suppress
from typing import Any


class FileServer:
    """Serves .files by path. Each request of a path takes the next of its .faults, and none when they are used up.

    A fault is a dictionary of what is other than it should be:
        status, headers, body   another answer
        length                  another Content-Length; None: none
        cut, reset              bytes (or a share of them) after which the connection ends; by a reset, not a close
        ranges                  False: Range is not looked at
        chunked                 True: in chunks, without a length
        redirect                an address to go to instead
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, dict[str, str]] = {}  # by path, of every answer
        self.faults: dict[str, list[dict[str, Any] | None]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.cuts = 0
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fail(self, path: str, *faults: dict[str, Any] | None) -> None:
        self.faults.setdefault(path, []).extend(faults)

    def ranges(self, path: str) -> list[str | None]:
        """The Range of each request of a path."""
        return [headers.get("Range") for asked, headers in self.requests if asked == path]

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *words: object) -> None:
                pass

            def do_GET(self) -> None:
                owner.requests.append((self.path, dict(self.headers)))
                faults = owner.faults.get(self.path)
                how = (faults.pop(0) if faults else None) or {}
                with suppress(OSError):  # of a client that has gone
                    self.serve(owner.files.get(self.path), **how)

            def serve(
                self,
                data: bytes | None,
                status: int | None = None,
                headers: dict[str, str] | None = None,
                body: bytes | None = None,
                length: int | str | None = "right",
                cut: int | float | None = None,
                reset: bool = False,
                ranges: bool = True,
                chunked: bool = False,
                redirect: str | None = None,
            ) -> None:
                extra = owner.headers.get(self.path, {}) | (headers or {})
                if redirect is not None:
                    status, body, extra = status or 302, b"", extra | {"Location": redirect}
                elif data is None and body is None:
                    status, body = status or 404, b"nothing here"
                content, code = (data if body is None else body), status or 200
                assert content is not None
                asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                if asked and ranges and status is None and body is None:
                    start, size = int(asked[1]), len(content)
                    code, content = (206, content[start:]) if start < size else (416, b"")
                    where = f"{start}-{size - 1}" if code == 206 else "*"
                    extra = {"Content-Range": f"bytes {where}/{size}"} | extra
                self.send_response(code)
                for name, value in extra.items():
                    self.send_header(name, value)
                if chunked:
                    self.send_header("Transfer-Encoding", "chunked")
                elif length is not None:
                    self.send_header("Content-Length", str(len(content) if length == "right" else length))
                self.end_headers()
                if chunked:
                    content = b"".join(b"%x\r\n%s\r\n" % (len(x), x) for x in (content[:99], content[99:]) if x)
                    content += b"0\r\n\r\n"
                if isinstance(cut, float):
                    cut = int(cut * len(content))
                self.wfile.write(content if cut is None else content[:cut])
                if cut is not None:
                    owner.cuts += 1
                    self.wfile.flush()
                    if reset:
                        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True

        Handler.protocol_version = "HTTP/1.1"
        return Handler
