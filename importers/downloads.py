"""Download a published file once, checked against its digest."""

import contextlib
import hashlib
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO

import platformdirs
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from importers.errors import DownloadError

__all__ = ["cache_folder", "download"]

CHUNK = 1 << 20
STALE_LOCK_S = 15.0  # a living download touches its lock far more often
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
    resumed where the server can; a second process that wants the same file waits for the first.
    The file appears under its name only when it is whole and checked.

    Args:
      url: of the file.
      digest: what it must hash to, `sha256:` or `md5:` and the first hexadecimal digits or all.
      name: of the file in the cache; the URL's last part if None.
      cache: folder to keep it in; `cache_folder()` if None.
      timeout: seconds without an answer or a byte after which to give up.
      progress: show a progress bar on standard error, where that is a terminal.
      remedy: the sentence of an error that says how to do without the download.

    Raises:
      DownloadError: if the file cannot be reached, breaks off, or is not the published one.
    """
    folder = Path(cache) if cache is not None else cache_folder()
    path = folder / (name or url.rpartition("/")[2])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(path.name + ".lock")) as touch:
            if path.exists() and _matches(path, digest):
                return path
            partial = path.with_name(path.name + ".part")
            _fetch(url, partial, timeout, progress, touch)
            if not _matches(partial, digest):
                partial.unlink()
                raise DownloadError(
                    f"{url} gave a file that does not have the digest {digest}: it is damaged or "
                    f"not the published one, and was deleted. Try again. {remedy}"
                )
            partial.replace(path)
    except (OSError, HTTPException) as error:
        raise DownloadError(f"Could not get {url} ({_reason(error)}). {remedy}") from error
    return path


def _fetch(url: str, partial: Path, timeout: float, progress: bool, touch: "_Touch") -> None:
    """Downloads to `partial`, going on from what an earlier try left there."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "tlv_jax"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if not have or error.code != 416:  # 416: there is nothing after what we have
            raise
        partial.unlink()
        return _fetch(url, partial, timeout, progress, touch)
    with response:
        resumed = response.status == 206
        with partial.open("ab" if resumed else "wb") as file:
            _copy(response, file, have if resumed else 0, progress, touch)
    return None


def _copy(
    response: HTTPResponse, file: BinaryIO, have: int, progress: bool, touch: "_Touch"
) -> None:
    length = response.headers.get("Content-Length")
    total = have + int(length) if length else None
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    console = Console(stderr=True)
    bar = Progress(*columns, console=console, disable=not progress or not console.is_terminal)
    with bar:
        task = bar.add_task(Path(file.name).stem, total=total, completed=have)
        # read1 hands over what has come, where read would wait for a whole chunk.
        while chunk := response.read1(CHUNK):
            file.write(chunk)
            bar.advance(task, len(chunk))
            touch()
    if total is not None and file.tell() < total:
        raise ConnectionError(f"broke off after {file.tell()} of {total} bytes")


def _matches(path: Path, digest: str) -> bool:
    algorithm, _, expected = digest.partition(":")
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest().startswith(expected)


class _Touch:
    """Keeps a lock fresh."""

    def __init__(self, lock: Path) -> None:
        self.lock = lock

    def __call__(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.lock)


@contextlib.contextmanager
def _locked(lock: Path) -> Iterator[_Touch]:
    """Holds a lock file; takes over one whose holder was killed."""
    while True:
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
            break
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                if time.time() - lock.stat().st_mtime > STALE_LOCK_S:
                    lock.unlink()
            time.sleep(0.05)
    try:
        yield _Touch(lock)
    finally:
        lock.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return "timed out"
    return str(reason) or type(reason).__name__
