import concurrent.futures
import functools
import hashlib
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from importers import DownloadError, download, downloads
from importers.downloads import cache_folder
from tlv_jax import OptionError

CONTENT = bytes(range(256)) * 400
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()[:8]


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; the path says how it misbehaves, `server.asked` what it was asked."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        first = len(self.server.asked) == 1
        content, status, start = CONTENT, 200, 0
        if self.path == "/missing":
            return self.send_error(404)
        if self.path == "/corrupt":
            content = content[::-1]
        asked = self.headers.get("Range")
        if asked and self.path != "/rangeless":
            start, status = int(asked.removeprefix("bytes=").removesuffix("-")), 206
        self.send_response(status)
        if self.path != "/lengthless":
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.path in ("/truncated", "/rangeless") and first:
            return self.wfile.write(content[start : len(content) // 2])
        if self.path == "/hopeless":
            return self.wfile.write(content[start : len(content) // 2])
        if self.path == "/stalled":
            self.wfile.write(content[start:100])
            return self.server.released.wait(5)
        if self.path == "/together":
            # Answers nobody before both have asked.
            self.server.barrier.wait(30)
        self.wfile.write(content[start:])

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def running():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def server(running):
    running.asked, running.released, running.barrier = [], threading.Event(), threading.Barrier(2)
    yield running
    running.released.set()


def fetch(server, path, folder, **options):
    return download(
        f"{server.url}/{path}",
        digest=DIGEST,
        cache=folder,
        **{"timeout": 5, "progress": False, **options},
    )


def test_a_file_is_downloaded_once(server, tmp_path):
    path = fetch(server, "file", tmp_path / "new" / "cache")
    assert path.read_bytes() == CONTENT
    assert fetch(server, "file", tmp_path / "new" / "cache") == path
    assert len(server.asked) == 1
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("path", ["truncated", "rangeless"])
def test_a_broken_connection_is_resumed_where_the_server_can(server, tmp_path, path):
    assert fetch(server, path, tmp_path).read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [None, f"bytes={len(CONTENT) // 2}-"]
    assert os.listdir(tmp_path) == [path]


def test_connections_that_bring_nothing_new_end_the_download(server, tmp_path):
    with pytest.raises(DownloadError, match=r"broke off after 51200 of 102400 bytes"):
        fetch(server, "hopeless", tmp_path)
    assert len(server.asked) == 2
    assert os.listdir(tmp_path) == []


def test_a_wrong_file_is_refused_and_deleted(server, tmp_path):
    with pytest.raises(DownloadError, match=r"does not have the digest sha256:.*Try again"):
        fetch(server, "corrupt", tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_damaged_file_in_the_cache_is_replaced(server, tmp_path):
    (tmp_path / "file").write_bytes(b"damaged")
    assert fetch(server, "file", tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "reason"), [("missing", "answered 404"), ("stalled", "timed out")]
)
def test_failures_are_one_sentence_and_say_what_to_do(server, tmp_path, path, reason):
    with pytest.raises(DownloadError, match=f"{reason}.*give its path instead"):
        fetch(server, path, tmp_path, timeout=0.2)
    assert os.listdir(tmp_path) == []


def test_no_server_at_all(tmp_path):
    with pytest.raises(DownloadError, match=r"Could not download http://127\.0\.0\.1:9/file"):
        download("http://127.0.0.1:9/file", digest=DIGEST, cache=tmp_path, timeout=1)


def test_a_server_that_does_not_tell_the_length(server, tmp_path):
    assert fetch(server, "lengthless", tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "digest", ["sha256", "sha256:", "md5:", "sha256:abc", "sha256:nothexad", "sha1:397923af", ""]
)
def test_a_digest_that_could_accept_any_file_is_refused(tmp_path, digest):
    (tmp_path / "file").write_bytes(b"anything")
    with pytest.raises(OptionError, match="at least 8 hexadecimal digits"):
        download("http://127.0.0.1:9/file", digest=digest, cache=tmp_path)


@pytest.mark.parametrize(
    ("url", "name"),
    [("nonsense", None), ("nonsense", "f"), ("file:///etc/hosts", None), ("http://host/", None)],
)
def test_an_address_of_no_file_is_refused(tmp_path, url, name):
    with pytest.raises(OptionError, match="expected the http or https address"):
        download(url, digest=DIGEST, name=name, cache=tmp_path)


def test_the_query_of_an_address_is_no_part_of_the_name(server, tmp_path):
    assert fetch(server, "file?download=1", tmp_path) == tmp_path / "file"


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_digests_of_either_algorithm(server, tmp_path, algorithm):
    digest = f"{algorithm}:{hashlib.new(algorithm, CONTENT).hexdigest()}"
    path = download(
        f"{server.url}/file", digest=digest, name="other", cache=tmp_path, progress=True
    )
    assert path == tmp_path / "other"


def test_progress_is_shown_on_a_terminal_alone(server, tmp_path, monkeypatch, capsys):
    fetch(server, "file", tmp_path / "file", progress=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(downloads, "Console", functools.partial(Console, force_terminal=True))
    fetch(server, "shown", tmp_path / "shown", progress=True)
    shown = capsys.readouterr()
    assert "shown" in shown.err
    assert "102.4/102.4 kB" in shown.err
    assert shown.out == ""
    fetch(server, "quiet", tmp_path / "quiet", progress=False)
    assert capsys.readouterr().err == ""


def test_two_at_once_both_succeed(server, tmp_path):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(fetch, server, "together", tmp_path) for _ in range(2)]
        assert [future.result().read_bytes() for future in futures] == [CONTENT, CONTENT]
    assert len(server.asked) == 2
    assert os.listdir(tmp_path) == ["together"]


def test_two_processes_at_once_both_succeed(server, tmp_path):
    code = (
        "import sys; from importers import download\n"
        "print(download(sys.argv[1], digest=sys.argv[2], cache=sys.argv[3]).stat().st_size)"
    )
    command = [sys.executable, "-c", code, f"{server.url}/together", DIGEST, str(tmp_path)]
    root = Path(__file__).parent.parent
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) for _ in range(2)]
    for process in processes:
        assert process.communicate()[0] == f"{len(CONTENT)}\n".encode()
    assert os.listdir(tmp_path) == ["together"]


def test_a_file_in_a_folder_that_cannot_be_written_to_is_used(server, tmp_path):
    path = fetch(server, "file", tmp_path)
    tmp_path.chmod(0o500)
    try:
        assert fetch(server, "file", tmp_path) == path
    finally:
        tmp_path.chmod(0o700)
    assert len(server.asked) == 1


def test_the_cache_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("TLV_JAX_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("TLV_JAX_CACHE")
    assert cache_folder().name == "tlv_jax"
