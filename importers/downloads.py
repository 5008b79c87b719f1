"""Download a published file once and check it against its digest."""

import hashlib
import os
import re
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

import platformdirs
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from importers.errors import DownloadError
from tlv_jax.errors import OptionError

__all__ = ["cache_folder", "download", "is_cached"]

CHUNK = 1 << 20  # bytes
REMEDY = (
    "If this machine cannot reach the server, get the file elsewhere and give its path instead."
)


def cache_folder() -> Path:
    """Where downloads are kept: `TLV_JAX_CACHE` if it is set, else the platform's cache folder."""
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
    """Returns the local path of a published file, and downloads it first if necessary.

    A file in the cache is used without a request if its digest is right. A downloaded file appears
    there only when it is complete and checked, so several processes can download it at once. A
    broken connection is resumed as long as each new one brings more bytes.

    Args:
      url: of the file.
      digest: what the file must hash to: `sha256:` or `md5:` and at least the first 8 hexadecimal
        digits.
      name: of the file in the cache; by default the last part of the URL's path.
      cache: the folder to keep the file in; by default `cache_folder()`.
      timeout: seconds to wait for an answer, or for more bytes.
      progress: whether to show a progress bar on standard error, if that is a terminal.
      remedy: the last sentence of an error message: how to do without the download.

    Raises:
      OptionError: if the digest or the URL does not have the form above.
      DownloadError: if the file cannot be reached, breaks off, or is not the published one.
    """
    digest = _checked_digest(digest)
    folder = Path(cache) if cache is not None else cache_folder()
    path = folder / _file_name(url, name)
    try:
        if not _matches(path, digest):
            folder.mkdir(parents=True, exist_ok=True)
            _obtain(url, path, digest, timeout, progress, remedy)
    except (OSError, HTTPException) as error:
        raise DownloadError(f"Could not download {url} ({_reason(error)}). {remedy}") from error
    return path


def is_cached(url: str, *, digest: str) -> bool:
    """Whether `download` would find the file in the cache, whole, and make no request.

    Args:
      url: of the file.
      digest: as `download` takes it.
    """
    return _matches(cache_folder() / _file_name(url, None), _checked_digest(digest))


def _checked_digest(digest: str) -> str:
    # A digest without digits would accept any file.
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
            f"url={url!r}: expected the http or https address of a file. Give `name` too if the "
            "address does not end in one."
        )
    return name


def _matches(path: Path, digest: str) -> bool:
    if not path.exists():
        return False
    algorithm, _, expected = digest.partition(":")
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest().startswith(expected)


def _obtain(url: str, path: Path, digest: str, timeout: float, progress: bool, remedy: str) -> None:
    """Puts the published file at `path` in one step."""
    # A unique name: whoever downloads the same file meanwhile writes to another one.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with partial.open("xb") as file:
            _fetch(url, file, path.name, timeout, progress)
        if not _matches(partial, digest):
            raise DownloadError(
                f"The download of {url} does not have the digest {digest}: it is damaged or not "
                f"the published one. Try again. {remedy}"
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _fetch(url: str, file: BinaryIO, name: str, timeout: float, progress: bool) -> None:
    """Downloads to `file`, over several connections if they break, under a progress bar."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    console = Console(stderr=True)
    hidden = not progress or not console.is_terminal
    with Progress(*columns, console=console, disable=hidden) as bar:
        task = bar.add_task(name, total=None)
        while True:
            had = file.tell()
            try:
                for size in _receive(url, file, timeout):
                    bar.update(task, completed=file.tell(), total=size)
                return
            except (ConnectionError, TimeoutError, HTTPException):
                if file.tell() <= had:
                    raise


def _receive(url: str, file: BinaryIO, timeout: float) -> Iterator[int | None]:
    """Downloads what `file` lacks; yields the final size, where it is known, after every chunk."""
    request = urllib.request.Request(url, headers={"User-Agent": "tlv_jax"})
    if file.tell():
        request.add_header("Range", f"bytes={file.tell()}-")
    with urllib.request.urlopen(request, timeout=timeout) as response:
        if response.status != 206:  # the server sends the whole file, asked for the rest or not
            file.seek(0)
            file.truncate()
        size = None if response.length is None else file.tell() + response.length
        # read1 returns what has arrived, where read would wait for a whole chunk.
        while chunk := response.read1(CHUNK):
            file.write(chunk)
            yield size
    if size is not None and file.tell() < size:
        raise ConnectionError(f"broke off after {file.tell()} of {size} bytes")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return "timed out"
    return str(reason) or type(reason).__name__
