import concurrent.futures
import functools
import hashlib
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from importers import downloads
from importers.downloads import _locked, cache_folder, download
from importers.errors import DownloadError
from tlv_jax import OptionError

CONTENT = bytes(range(256)) * 400
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()[:8]


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; the path says how it misbehaves, `server.asked` what was asked."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        first = len(self.server.asked) == 1
        content, status = CONTENT, 200
        if self.path == "/missing":
            return self.send_error(404)
        if self.path == "/corrupt":
            content = content[::-1]
        asked = self.headers.get("Range")
        start = 0
        if asked and self.path != "/rangeless":
            start, status = int(asked.removeprefix("bytes=").removesuffix("-")), 206
            if start >= len(content):
                return self.send_error(416)
        self.send_response(status)
        if self.path != "/lengthless":
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.path in ("/truncated", "/rangeless") and first:
            return self.wfile.write(content[start : len(content) // 2])
        if self.path == "/stalled":
            self.wfile.write(content[:100])
            return self.server.released.wait(5)
        if self.path == "/slow":
            time.sleep(0.3)
        if self.path == "/held":
            self.server.released.wait(5)
        self.wfile.write(content[start:])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.released = [], threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


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
def test_a_broken_download_goes_on_where_the_server_can(server, tmp_path, path):
    with pytest.raises(DownloadError, match=r"broke off after \d+ of \d+ bytes"):
        fetch(server, path, tmp_path)
    assert not (tmp_path / path).exists()
    assert fetch(server, path, tmp_path).read_bytes() == CONTENT
    assert server.asked[1][1] == f"bytes={len(CONTENT) // 2}-"


def test_a_partial_file_that_is_whole_already_is_fetched_anew(server, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT[::-1])
    assert fetch(server, "file", tmp_path).read_bytes() == CONTENT


def test_a_wrong_file_is_refused_and_deleted(server, tmp_path):
    with pytest.raises(DownloadError, match="does not have the digest sha256:"):
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
        fetch(server, path, tmp_path, timeout=0.5)
    assert not (tmp_path / path).exists()


def test_no_server_at_all(tmp_path):
    with pytest.raises(DownloadError, match=r"Could not get http://127\.0\.0\.1:9/file"):
        download("http://127.0.0.1:9/file", digest=DIGEST, cache=tmp_path, timeout=1)


def test_two_at_once_download_once(server, tmp_path):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(fetch, server, "slow", tmp_path) for _ in range(4)]
        paths = {future.result() for future in futures}
    assert len(paths) == 1
    assert len(server.asked) == 1
    assert paths.pop().read_bytes() == CONTENT


def test_the_lock_of_a_killed_process_is_free(server, tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from importers.downloads import _locked\n"
        "with _locked(Path(sys.argv[1])): print(flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "file.lock")]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as holder:
        holder.stdout.readline()
        holder.send_signal(signal.SIGKILL)
    assert (tmp_path / "file.lock").exists()
    assert fetch(server, "file", tmp_path).read_bytes() == CONTENT


def test_a_lock_that_is_held_is_never_taken_however_old(server, tmp_path):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(fetch, server, "held", tmp_path)
        while not (server.asked and (tmp_path / "held.lock").exists()):
            time.sleep(0.01)
        os.utime(tmp_path / "held.lock", (0, 0))
        second = pool.submit(fetch, server, "held", tmp_path)
        time.sleep(0.3)
        assert len(server.asked) == 1
        assert not second.done()
        server.released.set()
        assert first.result() == second.result()
    assert len(server.asked) == 1


def test_a_whole_file_is_used_while_its_lock_is_held(server, tmp_path):
    path = fetch(server, "file", tmp_path)
    with concurrent.futures.ThreadPoolExecutor(1) as pool, _locked(tmp_path / "file.lock"):
        assert pool.submit(fetch, server, "file", tmp_path).result(timeout=5) == path
    assert len(server.asked) == 1


def test_a_partial_file_of_another_version_does_not_spoil_the_download(server, tmp_path):
    (tmp_path / "file.part").write_bytes(b"of an older version")
    assert fetch(server, "file", tmp_path).read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == ["bytes=19-", None]


def test_a_whole_partial_file_is_not_downloaded_again(server, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT)
    assert fetch(server, "file", tmp_path).read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [f"bytes={len(CONTENT)}-"]


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
    fetch(server, "slow", tmp_path / "shown", progress=True)
    shown = capsys.readouterr()
    assert "slow" in shown.err
    assert "102.4/102.4 kB" in shown.err
    assert shown.out == ""
    fetch(server, "quiet", tmp_path / "quiet", progress=False)
    assert capsys.readouterr().err == ""


def test_processes_at_once_download_once(server, tmp_path):
    code = (
        "import sys; from importers import download\n"
        "print(download(sys.argv[1], digest=sys.argv[2], cache=sys.argv[3]).stat().st_size)"
    )
    command = [sys.executable, "-c", code, f"{server.url}/slow", DIGEST, str(tmp_path)]
    root = Path(__file__).parent.parent
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) for _ in range(2)]
    for process in running:
        assert process.communicate()[0] == f"{len(CONTENT)}\n".encode()
    assert len(server.asked) == 1
    assert os.listdir(tmp_path) == ["slow"]


def test_the_cache_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("TLV_JAX_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("TLV_JAX_CACHE")
    assert cache_folder().name == "tlv_jax"
