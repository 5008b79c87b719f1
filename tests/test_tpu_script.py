"""`examples/tpu.sh`, with a `gcloud` that shows what it is asked."""

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "examples" / "tpu.sh"
SETTINGS = {"TPU": "slice", "ZONE": "zone", "REPOSITORY": "https://example.org/it"}


def run(tmp_path, *arguments, **settings):
    gcloud = tmp_path / "gcloud"
    gcloud.write_text('#!/bin/sh\nfor last; do :; done\nprintf "%s\\n" "$*" >> calls\n')
    gcloud.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    return subprocess.run(
        ["sh", SCRIPT, *arguments],
        cwd=tmp_path,
        env={"PATH": path, **settings},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_host_installs_and_then_trains(tmp_path):
    assert run(tmp_path, "--name", "it's one", "--epochs", "3", **SETTINGS).returncode == 0
    calls = (tmp_path / "calls").read_text()
    assert calls.count("ssh slice --zone=zone --worker=all --command=") == 2
    assert "git clone --depth 1 'https://example.org/it'" in calls
    train = calls.rpartition("--command=")[2]
    command = train[train.index(".venv/bin/python") :]
    shown = subprocess.run(
        ["sh", "-c", f"show() {{ printf '<%s>' \"$@\"; }}; show {command}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "<--hosts.join><--out></mnt/shared/runs><--name><it's one><--epochs><3>" in shown.stdout


def test_without_a_slice_it_says_what_is_missing(tmp_path):
    refused = run(tmp_path, ZONE="zone", REPOSITORY="x")
    assert refused.returncode != 0
    assert "TPU: the name of the TPU VM" in refused.stderr
