"""Runs that are stopped or killed, and go on to the very result of those that are not."""

import random
import re
import shlex
import signal
import time

import chex
import interrupted
import pytest

EVERY_STEP = ("--save-every-steps", "1")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    interrupted.make_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def expected(inputs):
    """The folder of a run that nothing interrupts, with checkpoints at the ends of epochs."""
    process = interrupted.start(interrupted.arguments(inputs, inputs, "--name", "whole"))
    status, _, errors = interrupted.finish(process)
    assert status == 0, errors
    return inputs / "whole"


def assert_same_run(folder, expected):
    assert interrupted.metrics_of(folder) == interrupted.metrics_of(expected)
    chex.assert_trees_all_equal(
        interrupted.checkpoints_of(folder), interrupted.checkpoints_of(expected)
    )
    assert interrupted.results_of(folder) == interrupted.results_of(expected)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_and_says_how_to_go_on(inputs, expected, number, status, tmp_path):
    (tmp_path / "run").mkdir()  # so the run folder is another than the one asked for
    (tmp_path / "run" / "notes").touch()
    # No other checkpoint is saved within an epoch.
    command = interrupted.arguments(inputs, tmp_path, "--name", "run", "--epochs", "4")
    process = interrupted.start(command)
    interrupted.wait_for(process, (tmp_path / "run-2" / "checkpoints" / "transferred").exists)
    process.send_signal(number)
    returned, _, errors = interrupted.finish(process)
    assert returned == status, errors
    line = errors.splitlines()[-1]
    step, rest = re.fullmatch(
        r"stopped after step (\d+) of 'transferred'; continue with: python -m train (.*)", line
    ).groups()
    saved = interrupted.checkpoints_of(tmp_path / "run-2")
    assert ("transferred", int(step)) in saved
    returned, _, errors = interrupted.finish(interrupted.start(shlex.split(rest)))
    assert returned == 0, errors
    assert_same_run(tmp_path / "run-2", expected)


def killed_run(inputs, folder, generator):
    """Starts or resumes the run in `folder`, and kills it some time after it begins to train.

    Returns whether the run ended before that.
    """
    resume = ["--resume"] if folder.exists() else []
    options = ("--name", folder.name, *EVERY_STEP, *resume)
    process = interrupted.start(interrupted.arguments(inputs, folder.parent, *options))
    saving = folder / "checkpoints"
    before = interrupted.newest(saving)
    moment = generator.uniform(0, 0.5)
    half_saved = generator.random() < 0.5
    while process.poll() is None and interrupted.newest(saving) == before:
        time.sleep(0.001)
    time.sleep(moment)
    while half_saved and process.poll() is None and not list(saving.glob("*/*-tmp*")):
        time.sleep(0.0001)
    process.kill()
    status, _, errors = interrupted.finish(process)
    assert status in (0, -signal.SIGKILL), errors
    return status == 0


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_at_any_moment_loses_nothing(inputs, expected, kills, tmp_path):
    generator = random.Random(kills)
    folder, runs = tmp_path / "run-0", 0
    for _ in range(kills):
        if killed_run(inputs, folder, generator):
            assert_same_run(folder, expected)
            runs += 1
            folder = tmp_path / f"run-{runs}"
    resume = ["--resume"] if folder.exists() else []
    options = ("--name", folder.name, *EVERY_STEP, *resume)
    process = interrupted.start(interrupted.arguments(inputs, tmp_path, *options))
    status, _, errors = interrupted.finish(process)
    assert status == 0, errors
    assert_same_run(folder, expected)
