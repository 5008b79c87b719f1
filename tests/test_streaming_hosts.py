"""Streamed pictures on two hosts, here two processes, each with a device."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train.batches import pixels_of
from train.config import Config
from train.datasets import load_dataset

ROOT = Path(__file__).parent.parent

HOST = """
import contextlib, hashlib, sys
from pathlib import Path
import numpy as np
from jax.experimental import multihost_utils
from train.batches import batches
from train.config import Config, HostOptions
from train.contents import known_files
from train.datasets import load_dataset
from train.devices import find_devices, join_hosts

address, rank, folder = sys.argv[1:]
join_hosts(HostOptions(join=True, coordinator=address, count=2, rank=int(rank)))
config = Config(dataset="folder", data_dir=Path(folder), image_size=8, batch_size=4, stream=True)
files = load_dataset(config, known_files(config)).train
order = np.arange(12, dtype=np.int32).reshape(3, 4)
own = order[:, 2 * int(rank) : 2 * int(rank) + 2]
for path in set(files.paths) - set(files.paths[own.ravel()]):
    path.unlink()  # what the other host reads
digest = hashlib.sha256()
with contextlib.closing(batches(files, order, find_devices(config).rows)) as read:
    for _, batch in read:
        whole = multihost_utils.process_allgather(batch.images, tiled=True)
        digest.update(np.asarray(whole).tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_a_host_reads_only_its_own_share_of_each_batch(tmp_path):
    folders = [tmp_path / "first", tmp_path / "second"]
    for name in ("cats", "dogs"):
        (folders[0] / name).mkdir(parents=True)
        for number in range(10):
            pixels = np.random.default_rng(number).integers(0, 256, (9, 12, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folders[0] / name / f"{number}.png")
    shutil.copytree(*folders)
    files = load_dataset(
        Config(dataset="folder", data_dir=folders[0], image_size=8, batch_size=4, stream=True)
    ).train
    expected = hashlib.sha256(np.concatenate(list(pixels_of(files)))[:12].tobytes()).hexdigest()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
    }
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, address, str(rank), folder],
            cwd=ROOT,
            env={**os.environ, **flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, folder in enumerate(folders)
    ]
    ends = [host.communicate(timeout=300) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], ends
    assert [output.splitlines()[-1] for output, _ in ends] == [expected] * 2, ends
