"""Download a file over HTTP: resumed where it was cut, checked, and either whole or not there.

A file that is on its way lies beside its target as NAME.VERSION.part. VERSION stands for what the server calls this
version of the file: its SHA-256, or else its ETag and length. A part is resumed only by the same version, so that two
versions are never joined. When the length and the SHA-256 are right, the part is renamed to its target and its sum
recorded in the SHA256SUMS beside it.
"""

import contextlib
import hashlib
import http.client
import os
import re
import shutil
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from glob import escape
from http.client import HTTPMessage
from pathlib import Path
from time import sleep, time
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tqdm import tqdm

import cfld
from cfld.tools.cli import UserError
from cfld.tools.files import writing
from cfld.tools.sums import record_sum

T = TypeVar("T")
BLOCK = 2**18  # bytes between two writes
TIMEOUT = 60  # seconds without a byte after which a connection counts as cut
ATTEMPTS = 8  # in a row that bring nothing new
LONGEST_WAIT = 600  # seconds that a server may ask for


class Interrupted(Exception):
    """A failure that may pass, such as a cut connection. wait: seconds that the server asks for."""

    def __init__(self, text: str, wait: float = 0.0):
        super().__init__(text)
        self.wait = wait


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port of an address."""
    parts, port = urlsplit(url), None
    with contextlib.suppress(ValueError):  # no number
        port = parts.port
    return parts.scheme, parts.hostname, port or {"http": 80, "https": 443}.get(parts.scheme)


def shown(url: str) -> str:
    """An address for messages: without its query, which may hold a signature."""
    return url.partition("?")[0]


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, sends the token to its own host alone, and keeps the headers on the way."""

    def __init__(self, url: str, token: str | None):
        self.home, self.token = origin(url), token
        self.headers: list[HTTPMessage] = []

    def authorize(self, request: urllib.request.Request) -> urllib.request.Request:
        """Add the token if the request goes to its host. Redirects do not copy an "unredirected" header."""
        if self.token and origin(request.full_url) == self.home:
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        return request

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        self.headers.append(headers)
        scheme = urlsplit(newurl).scheme
        if scheme != "https" and (scheme != "http" or req.type == "https"):
            raise UserError(f"{shown(req.full_url)} redirects from {req.type} to {scheme}, which is not safe")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        return request and self.authorize(request)


@dataclass(frozen=True)
class Version:
    """What a server says about a file; None where it says nothing."""

    sha256: str | None
    size: int | None  # bytes of the whole file
    etag: str | None
    chunked: bool  # ends with a mark of its own

    @classmethod
    def of(cls, url: str, status: int, headers: Message, on_the_way: Sequence[Message]) -> "Version":
        """What an answer says. Hugging Face gives the SHA-256 and the size of large files in the redirect to them."""
        linked = [
            (value.strip('"').lower(), hop.get("X-Linked-Size"))
            for hop in (*on_the_way, headers)
            if re.fullmatch(r'"?[0-9a-fA-F]{64}"?', value := hop.get("X-Linked-Etag", "").strip())
        ]
        total = headers.get("Content-Length", "")
        if status in (206, 416):
            total = headers.get("Content-Range", "").rpartition("/")[2]
        sizes = [int(text) for text in (total, *(size or "" for _, size in linked[:1])) if text.isdecimal()]
        if len(set(sizes)) > 1:
            raise UserError(f"{shown(url)}: the server sends {sizes[0]} bytes of a file of {sizes[1]}: try again later")
        etag = headers.get("ETag")
        return cls(
            sha256=linked[0][0] if linked else None,
            size=sizes[0] if sizes else None,
            etag=None if etag is None or etag.startswith("W/") else etag,
            chunked="chunked" in headers.get("Transfer-Encoding", "").lower(),
        )

    def name(self, sha256: str | None) -> str | None:
        """What parts of this version are called; None if the server gives nothing to tell versions apart by."""
        identity = sha256 or self.sha256 or (self.etag and f"{self.etag} {self.size}")
        return hashlib.sha256(identity.encode()).hexdigest()[:12] if identity else None


def retry_after(headers: Message) -> float:
    """The seconds that a server asks us to wait, as a number or as a date; 0 if it does not."""
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    with contextlib.suppress(ValueError, TypeError):
        return max(parsedate_to_datetime(text).timestamp() - time(), 0.0)
    return 0.0


def failure(url: str, error: Exception) -> Exception:
    """What a request that has failed means: Interrupted, if it is worth trying again, or a UserError."""
    if isinstance(error, urllib.error.HTTPError):
        if error.code in (408, 425, 429) or error.code >= 500:
            return Interrupted(f"{error.code} {error.reason}", retry_after(error.headers))
        advice = "get it by hand (weights/README.md)"
        if error.code in (401, 403):
            advice = f"accept its terms on its page and set HF_TOKEN, or {advice}"
        elif error.code in (404, 410):
            advice = f"it has moved; try another --endpoint, or {advice}"
        host = urlsplit(error.url or url).hostname
        return UserError(f"{shown(url)}: {host} answers {error.code} {error.reason}: {advice}")
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return UserError(f"{shown(url)}: the server's certificate cannot be verified ({reason})")
    return Interrupted(str(reason) or type(reason).__name__)


@contextlib.contextmanager
def answer(url: str, start: int = 0, token: str | None = None) -> Iterator[tuple[Any, Version]]:
    """Ask for a file from byte start on. Gives the answer and what it says of the file. Its status is 200 (all of the
    file), 206 (what was asked for) or 416 (the file has no such byte).

    Raises Interrupted if it is worth trying again, otherwise UserError.
    """
    redirects = Redirects(url, token)
    headers = {"User-Agent": f"cfld/{cfld.__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = redirects.authorize(urllib.request.Request(url, headers=headers))
    try:
        response = urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416 or not start:
            raise failure(url, error) from None
        yield error, Version.of(url, 416, error.headers, redirects.headers)
        return
    except (OSError, http.client.HTTPException) as error:
        raise failure(url, error) from None
    with response:
        kind, encoding = (response.headers.get(name, "").lower() for name in ("Content-Type", "Content-Encoding"))
        if "text/html" in kind or encoding not in ("", "identity"):
            found = "a web page" if "text/html" in kind else encoding
            raise UserError(f"{shown(url)}: the server sends {found}, not the file: open the address in a browser")
        if response.status != 200 and not (start and response.status == 206):
            raise UserError(f"{shown(url)}: the server answers {response.status} {response.reason}, expected 200 OK")
        yield response, Version.of(url, response.status, response.headers, redirects.headers)


def blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The body of an answer, block by block. Raises Interrupted if the connection breaks; a closed one may just end."""
    while True:
        try:
            block = response.read1(BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise Interrupted(str(error) or type(error).__name__) from None
        if not block:
            return
        yield block


def continues(response: Any, start: int) -> bool:
    """Whether an answer of 206 or 416 fits a part of this many bytes: it begins there, or the file ends there."""
    text = response.headers.get("Content-Range", "")
    return text.startswith(f"bytes {start}-") if response.status == 206 else text == f"bytes */{start}"


def parts(path: Path) -> list[Path]:
    """The parts of a file, the longest first."""
    found = [part for part in path.parent.glob(f"{escape(path.name)}.*.part") if part.is_file()]
    return sorted(found, key=lambda part: part.stat().st_size, reverse=True)


def begun(path: Path) -> int:
    """How many bytes of a file have arrived."""
    return max((part.stat().st_size for part in parts(path)), default=0)


def clear(path: Path) -> None:
    """Remove the parts of a file."""
    for part in parts(path):
        part.unlink()


def start_over(path: Path) -> Interrupted:
    """Remove the parts of a file, of which the server has another version. Returns what to raise."""
    clear(path)
    return Interrupted("what has arrived does not fit what the server has now")


def hash_of(path: Path) -> Any:
    """A running SHA-256 of what a file holds so far."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256")


def check_room(folder: Path, needed: int) -> None:
    """Raise UserError unless this many bytes fit on the disk of a folder, which need not exist."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    if (free := shutil.disk_usage(there).free) < needed:
        raise UserError(
            f"{folder}: {gigabytes(needed)} are needed, {gigabytes(free)} are free: make room or change --to"
        )


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.3g} MB" if size >= 1e4 else f"{size:.0f} bytes"


def attempt(url: str, path: Path, sha256: str | None, size: int | None, token: str | None) -> str:
    """Bring the part of a file to its end, check it and rename it to path. Returns its SHA-256.

    Raises Interrupted, and keeps what has arrived if it can be continued; otherwise UserError.
    """
    part = next(iter(parts(path)), None)
    start = part.stat().st_size if part else 0
    digest = hash_of(part) if part and start else hashlib.sha256()
    with answer(url, start, token) as (response, version):
        if sha256 and version.sha256 not in (None, sha256):
            raise UserError(f"{shown(url)} is now another file: its SHA-256 is {version.sha256}, expected {sha256}")
        if size is not None and version.size not in (None, size):
            raise UserError(f"{shown(url)}: the server sends a file of {version.size} bytes, expected {size}")
        name, expected = version.name(sha256), sha256 or version.sha256
        total = size if version.size is None else version.size
        if response.status != 200 and not (
            part and part.name == f"{path.name}.{name}.part" and continues(response, start)
        ):
            raise start_over(path)
        if total == 0:
            raise UserError(f"{shown(url)}: the server sends an empty file: try again later")
        if total is None and not version.chunked and expected is None:
            raise UserError(f"{shown(url)}: the server says neither the file's length nor its sum: get it by hand")
        if response.status == 200:  # all of it, whatever was asked for
            start, digest = 0, hashlib.sha256()
            clear(path)
        check_room(path.parent, (total or start) - start)
        part = path.with_name(f"{path.name}.{name or 'unknown'}.part")
        have = start
        with (
            tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=path.name, leave=False) as bar,
            writing(path),
            open(part, "ab") as file,
        ):
            for block in blocks(response) if response.status != 416 else ():
                file.write(block)
                digest.update(block)
                have += len(block)
                bar.update(len(block))
                if total is not None and have > total:
                    break
            file.flush()
            os.fsync(file.fileno())
    if total is not None and have < total:
        raise Interrupted(f"the connection was cut after {gigabytes(have)} of {gigabytes(total)}")
    found = digest.hexdigest()
    if (total is not None and have > total) or expected not in (None, found):
        if start:
            raise start_over(path)
        clear(path)
        raise UserError(
            f"{shown(url)}: {have} bytes with the SHA-256 {found} have arrived, expected {total or have} with "
            f"{expected or 'any'}: try another --endpoint"
        )
    with open(part, "rb") as file:
        if file.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html")):
            clear(path)
            raise UserError(f"{shown(url)}: the server sends a web page, not the file: open the address in a browser")
    with writing(path):
        record_sum(path, found)
        os.replace(part, path)
    return found


def patiently(url: str, act: Callable[[], T], progress: Callable[[], int]) -> T:
    """act(), again after each Interrupted, with longer and longer waits. Raises UserError if ATTEMPTS in a row make no
    progress."""
    furthest, idle = -1, 0
    while True:
        try:
            return act()
        except Interrupted as error:
            reason, wait = str(error), error.wait
        idle = 0 if progress() > furthest else idle + 1
        furthest = max(furthest, progress())
        if idle == ATTEMPTS or wait > LONGEST_WAIT:
            when = f"in {wait:.0f} seconds" if wait > LONGEST_WAIT else "later"
            raise UserError(f"{shown(url)}: {reason}; try again {when}, it goes on after {gigabytes(progress())}")
        wait = max(wait, min(2**idle, 60) / 2)
        tqdm.write(f"{shown(url)}: {reason}; trying again in {wait:.3g} s", file=sys.stderr)
        sleep(wait)


def ask(url: str, token: str | None = None) -> Version:
    """What a server says of a file. Raises UserError."""

    def act() -> Version:
        with answer(url, 0, token) as (_, version):
            return version

    return patiently(url, act, lambda: 0)


def download(url: str, path: Path, sha256: str | None = None, size: int | None = None, token: str | None = None) -> str:
    """Download a file to path, resuming what an earlier call has left. Returns its SHA-256.

    sha256, size: what the file must have; None: what the server says of it
    token: sent to the host of url alone
    Raises UserError. What has arrived then stays for the next call, unless it is wrong.
    """
    return patiently(url, lambda: attempt(url, path, sha256, size, token), lambda: begun(path))
