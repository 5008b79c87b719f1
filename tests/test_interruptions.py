"""Runs that are stopped or killed, and go on to the very result of those that are not."""

import random
import re
import resource
import shlex
import signal
import threading
import time

import chex
import interrupted
import pytest

from train.interruptions import watch

EVERY_STEP = ("--save-every-steps", "1")


@pytest.fixture(autouse=True)
def not_in_the_background():
    """Has Ctrl-C raise here even where whoever runs the tests ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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


def stop(arguments, checkpoints, number):
    """Sends a signal when the first training begins.

    Returns the exit status, the step that was saved, and the arguments that go on from it.
    """
    process = interrupted.start(arguments)
    interrupted.wait_for(process, checkpoints.exists)
    process.send_signal(number)
    status, _, errors = interrupted.finish(process)
    line = errors.splitlines()[-1]
    pattern = r"stopped after step (\d+) of 'transferred'; continue with: python -m train (.*)"
    found = re.fullmatch(pattern, line)
    assert found, errors
    return status, int(found[1]), shlex.split(found[2])


def test_sigterm_saves_the_step_and_prints_the_command_that_goes_on(inputs, expected, tmp_path):
    (tmp_path / "run").mkdir()  # so the run folder is another than the one asked for
    (tmp_path / "run" / "notes").touch()
    folder = tmp_path / "run-2"
    # No other checkpoint is saved within an epoch.
    command = interrupted.arguments(inputs, tmp_path, "--name", "run")
    status, step, rest = stop(command, folder / "checkpoints" / "transferred", signal.SIGTERM)
    assert status == 0
    assert ("transferred", step) in interrupted.checkpoints_of(folder, ("transferred",))
    status, _, errors = interrupted.finish(interrupted.start(rest))
    assert status == 0, errors
    assert_same_run(folder, expected)


@pytest.mark.slow
def test_ctrl_c_saves_the_step_too(inputs, tmp_path):
    command = interrupted.arguments(inputs, tmp_path, "--name", "run", "--no-baseline")
    checkpoints = tmp_path / "run" / "checkpoints" / "transferred"
    status, step, rest = stop(command, checkpoints, signal.SIGINT)
    assert status == 130
    assert ("transferred", step) in interrupted.checkpoints_of(tmp_path / "run", ("transferred",))
    assert rest == [*command, "--name", "run", "--resume"]


@pytest.mark.slow
def test_a_run_without_room_ends_with_one_sentence_and_what_was_saved(inputs, tmp_path):
    options = ("--name", "run", *EVERY_STEP, "--no-baseline")
    process = interrupted.start(interrupted.arguments(inputs, tmp_path, *options))
    checkpoints = tmp_path / "run" / "checkpoints" / "transferred"
    interrupted.wait_for(process, (checkpoints / "1").exists)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (500, 500))  # as if the disk were full
    status, _, errors = interrupted.finish(process)
    assert status == 1
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert re.search(r"cannot be (saved|written).* --resume\.$", line)
    assert interrupted.checkpoints_of(tmp_path / "run", ("transferred",))


@pytest.mark.slow
def test_a_run_that_cannot_save_when_it_is_stopped_does_not_say_that_it_did(inputs, tmp_path):
    process = interrupted.start(interrupted.arguments(inputs, tmp_path, "--name", "run"))
    checkpoints = tmp_path / "run" / "checkpoints" / "transferred"
    interrupted.wait_for(process, checkpoints.exists)
    # No file of the checkpoint fits, so that it fails behind the back of the training.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (500, 500))
    process.send_signal(signal.SIGTERM)
    status, _, errors = interrupted.finish(process)
    assert status == 1
    assert "error: The checkpoint of step" in errors
    assert "stopped after step" not in errors


@pytest.mark.slow
def test_hosts_stop_at_the_same_step_when_one_of_them_is_asked_to(inputs, tmp_path):
    command = interrupted.arguments(inputs, tmp_path, "--name", "run", "--no-baseline", *EVERY_STEP)
    hosts = interrupted.start_hosts(command, command)
    checkpoints = tmp_path / "run" / "checkpoints" / "transferred"
    # Both train once something is saved. Before, JAX's own handler of SIGTERM is in force.
    interrupted.wait_for(hosts[0], lambda: list(checkpoints.glob("[0-9]")))
    hosts[1].send_signal(signal.SIGTERM)
    ends = [interrupted.finish(host) for host in hosts]
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert all("stopped after step" in errors for _, _, errors in ends), ends
    steps = [re.search(r"stopped after step (\d+)", errors)[1] for _, _, errors in ends]
    assert steps[0] == steps[1]
    assert int(steps[0]) < 12
    resumed = interrupted.start_hosts(*[[*command, "--resume"]] * 2)
    ends = [interrupted.finish(host) for host in resumed]
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert "12" in {path.name for path in checkpoints.iterdir()}


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


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_loses_nothing(inputs, expected, tmp_path):
    generator, kills = random.Random(50), 50
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


def test_the_first_signal_is_noted_and_the_second_acts():
    before = signal.getsignal(signal.SIGINT)
    with watch(None, None) as watched:
        assert not watched.due(1).stop
        signal.raise_signal(signal.SIGINT)
        assert watched.due(2) == (True, True)
        assert watched.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_handlers_are_as_before_when_nothing_was_signalled():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with watch(None, None):
        pass
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with watch(None, None) as watched:
            signal.raise_signal(signal.SIGTERM)
            assert not watched.due(1).stop
    finally:
        signal.signal(signal.SIGTERM, before)


def test_handlers_are_left_alone_outside_of_the_main_thread():
    before = signal.getsignal(signal.SIGINT)

    def other():
        with watch(1, None) as watched:
            assert signal.getsignal(signal.SIGINT) is before
            seen.append(watched.due(1).save)

    seen = []
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [True]


@pytest.mark.parametrize(
    ("every_steps", "every_minutes", "saved"),
    [(None, None, []), (3, None, [3, 6]), (None, 1e-9, [1, 2, 3, 4, 5, 6, 7]), (None, 1e6, [])],
)
def test_checkpoints_are_due_after_steps_or_minutes(every_steps, every_minutes, saved):
    with watch(every_steps, every_minutes) as watched:
        assert [step for step in range(1, 8) if watched.due(step).save] == saved
