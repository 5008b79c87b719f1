"""A run folder is complete as soon as it is seen, and used by one process at a time."""

import dataclasses
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from train.config import Config
from train.data import LabelledImages, Splits
from train.errors import ConfigError
from train.run_folder import is_in_use, open_run_folder, read_settings

IMAGES = LabelledImages(np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1], np.int32))
SPLITS = Splits(IMAGES, IMAGES, IMAGES, ("cat", "dog"), {})


@pytest.fixture
def config(tmp_path):
    return Config(out=tmp_path / "runs", name="run")


@pytest.fixture
def started(config):
    """A run that is not going on."""
    with open_run_folder(config, SPLITS) as folder:
        return folder


def resumed(config):
    return open_run_folder(dataclasses.replace(config, resume=True), SPLITS)


def test_runs_that_start_at_the_same_moment_have_folders_of_their_own(config):
    def start(_):
        with open_run_folder(config, SPLITS) as folder:
            assert read_settings(folder)["name"] == "run"
            return folder.name

    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(start, range(24)))
    assert sorted(names) == sorted(["run", *(f"run-{number}" for number in range(2, 25))])
    # Nothing else is left behind.
    assert sorted(path.name for path in config.out.iterdir()) == sorted(names)


def test_a_run_that_is_going_on_is_not_resumed(config):
    with open_run_folder(config, SPLITS) as folder:
        assert is_in_use(folder)
        match = (
            rf"{folder} is still going on, in process {os.getpid()} on .*another run with --name"
        )
        with pytest.raises(ConfigError, match=match), resumed(config):
            pass
    assert not is_in_use(folder)
    with resumed(config) as again:
        assert again == folder
        assert is_in_use(folder)


def test_two_do_not_resume_the_same_run(config, started):
    with resumed(config), pytest.raises(ConfigError, match="still going on"), resumed(config):
        pass


HOLD = """
import sys, time
from test_run_folder import *
with resumed(Config(out=Path(sys.argv[1]), name="run")):
    print("held", flush=True)
    time.sleep(300)
"""


def test_the_lock_of_a_process_that_was_killed_does_not_count(config, started):
    root = os.path.dirname(os.path.dirname(__file__))
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.replace("import sys", "from pathlib import Path\nimport sys"),
         str(config.out)],
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root}/tests"},
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match=f"in process {process.pid} on"), resumed(config):
        pass
    process.kill()
    process.communicate()
    with resumed(config) as folder:
        assert folder == started


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"seed": 0'])
def test_damaged_settings_are_one_sentence(config, started, content):
    path = started / "config.json"
    path.write_bytes(content)
    match = rf"{path} is damaged \(.*\), expected the settings of a run\. Start another run with"
    with pytest.raises(ConfigError, match=match), resumed(config):
        pass


@pytest.mark.parametrize(
    "changes", [{"save_every_steps": 5, "save_every_minutes": 1.5}, {"shard_params": True}]
)
def test_how_often_and_from_where_a_run_saves_may_change(config, started, changes):
    with resumed(dataclasses.replace(config, **changes)) as again:
        assert again == started
    assert json.loads((started / "config.json").read_text())["save_every_steps"] is None
