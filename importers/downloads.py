"""Download a published file once, checked against its digest."""

import contextlib
import hashlib
import os
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO

import platformdirs
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from importers.errors import DownloadError
from tlv_jax.errors import OptionError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["cache_folder", "download"]

CHUNK = 1 << 20
WAIT_S = 0.05  # between two looks at a lock that another download holds
REMEDY = "Where the network is closed, get the file elsewhere and give its path instead."


def cache_folder() -> Path:
    """Where downloads are kept: `TLV_JAX_CACHE`, else the platform's cache folder."""
    chosen = os.environ.get("TLV_JAX_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("tlv_jax"))


def download(
    url: str,
    *,
    digest: str,
    name: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    timeout: float = 30.0,
    progress: bool = True,
    remedy: str = REMEDY,
) -> Path:
    """Returns the local path of a published file, downloading it if it is not there yet.

    A file in the cache is used without a request if its digest is right. A broken download is
    resumed where the server can; whoever else wants the same file meanwhile waits for the first.
    The file appears under its name only when it is whole and checked.

    Args:
      url: of the file.
      digest: what it must hash to: `sha256:` or `md5:` and at least the first 8 hexadecimal digits.
      name: of the file in the cache; the last part of the URL's path if None.
      cache: folder to keep it in; `cache_folder()` if None.
      timeout: seconds without an answer or a byte after which to give up.
      progress: show a progress bar on standard error, where that is a terminal.
      remedy: the sentence of an error that says how to do without the download.

    Raises:
      OptionError: if the digest or the URL is not of the form above.
      DownloadError: if the file cannot be reached, breaks off, or is not the published one.
    """
    digest = _checked_digest(digest)
    folder = Path(cache) if cache is not None else cache_folder()
    path = folder / _file_name(url, name)
    try:
        # Before the lock, so that a cache that cannot be written to serves as well.
        if _matches(path, digest):
            return path
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(path.name + ".lock")):
            if not _matches(path, digest):
                partial = path.with_name(path.name + ".part")
                _obtain(url, partial, digest, timeout, progress, remedy)
                partial.replace(path)
    except (OSError, HTTPException) as error:
        raise DownloadError(f"Could not get {url} ({_reason(error)}). {remedy}") from error
    return path


def _checked_digest(digest: str) -> str:
    # A digest of no digits would accept any file.
    if not re.fullmatch(r"sha256:[0-9a-f]{8,64}|md5:[0-9a-f]{8,32}", digest.lower()):
        raise OptionError(
            f"digest={digest!r}: expected 'sha256:' or 'md5:' and at least 8 hexadecimal digits, "
            "as in 'sha256:397923af'."
        )
    return digest.lower()


def _file_name(url: str, name: str | None) -> str:
    parts = urllib.parse.urlsplit(url)
    name = name or parts.path.rpartition("/")[2]
    if parts.scheme not in ("http", "https") or not name:
        raise OptionError(
            f"url={url!r}: expected the http or https address of a file. Give its `name` too where "
            "the address ends without one."
        )
    return name


def _obtain(
    url: str, partial: Path, digest: str, timeout: float, progress: bool, remedy: str
) -> None:
    """Leaves the published file at `partial`."""
    while True:
        resumed = _fetch(url, partial, timeout, progress)
        if _matches(partial, digest):
            return
        partial.unlink()
        # What an earlier try left may be of another file: that is no fault of this one.
        if not resumed:
            raise DownloadError(
                f"{url} gave a file that does not have the digest {digest}: it is damaged or "
                f"not the published one, and was deleted. Try again. {remedy}"
            )


def _fetch(url: str, partial: Path, timeout: float, progress: bool) -> bool:
    """Downloads to `partial`; returns whether it went on from what an earlier try left there."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "tlv_jax"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if have and error.code == 416:  # there is nothing after what we have
            return True
        raise
    with response:
        resumed = have > 0 and response.status == 206
        with partial.open("ab" if resumed else "wb") as file:
            _copy(response, file, have if resumed else 0, progress)
    return resumed


def _copy(response: HTTPResponse, file: BinaryIO, have: int, progress: bool) -> None:
    total = None if response.length is None else have + response.length
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    console = Console(stderr=True)
    bar = Progress(*columns, console=console, disable=not progress or not console.is_terminal)
    with bar:
        task = bar.add_task(Path(file.name).stem, total=total, completed=have)
        # read1 hands over what has come, where read would wait for a whole chunk.
        while chunk := response.read1(CHUNK):
            file.write(chunk)
            bar.advance(task, len(chunk))
    if total is not None and file.tell() < total:
        raise ConnectionError(f"broke off after {file.tell()} of {total} bytes")


def _matches(path: Path, digest: str) -> bool:
    if not path.exists():
        return False
    algorithm, _, expected = digest.partition(":")
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest().startswith(expected)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock file. The system frees it with its holder, however that ends."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
        if _try_lock(descriptor) and _is_at(descriptor, path):
            break
        os.close(descriptor)
        time.sleep(WAIT_S)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows deletes no open file
            path.unlink()
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    if sys.platform == "win32":
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # Some network file systems have no locks. The digest guards the result there too.
        return True
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one there: its last holder has deleted it otherwise."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return "timed out"
    return str(reason) or type(reason).__name__
