"""A host that fails before the training stops the others, here two processes."""

import shutil
import time

import interrupted
import pytest

pytestmark = pytest.mark.slow
SOON = 120  # seconds, with the starts of two processes on a busy machine


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    interrupted.make_inputs(folder)
    return folder


def ends_of(inputs, out, spoil):
    """Starts both, the second with its own inputs, of which something is spoilt."""
    other = shutil.copytree(inputs, out / "other")
    more = spoil(other) or ()
    commands = [
        interrupted.arguments(inputs, out, "--name", "run"),
        interrupted.arguments(other, out, "--name", "run", *more),
    ]
    started = time.monotonic()
    ends = [interrupted.finish(host) for host in interrupted.start_hosts(*commands)]
    assert time.monotonic() - started < SOON
    return ends


def lose_source(inputs):
    (inputs / "source.safetensors").unlink()


def lose_pictures(inputs):
    shutil.rmtree(inputs / "photographs")


def lack_a_package(inputs):
    return "--target", "no_such_package:Net"


def lack_a_class(inputs):
    return "--target", "small_network:Missing"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lose_source, "source.safetensors"),
        (lose_pictures, "photographs"),
        (lack_a_package, "no_such_package"),
        (lack_a_class, "Missing"),
    ],
)
def test_all_end_soon_with_the_error_of_the_one_that_fails(inputs, tmp_path, spoil, message):
    (status, _, other), (failed, _, own) = ends_of(inputs, tmp_path, spoil)
    assert (status, failed) == (1, 1), (other, own)
    (own,) = [line for line in own.splitlines() if line.startswith("error: ")]
    assert message in own
    (other,) = [line for line in other.splitlines() if line.startswith("error: ")]
    assert other == f"error: Host 1 failed, so this one stops: {own.removeprefix('error: ')}"
    assert not (tmp_path / "run").exists()


def change_pictures(inputs):
    (inputs / "photographs" / "dark" / "3.png").unlink()


def change_source(inputs):
    path = inputs / "source.safetensors"
    content = bytearray(path.read_bytes())
    content[-8] ^= 1  # a bit of a weight
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "messages"),
    [
        (change_pictures, ("different images; this one read 40", "this one read 39")),
        (change_source, ("different weights of the source",) * 2),
    ],
)
def test_hosts_that_read_other_files_do_not_train_together(inputs, tmp_path, spoil, messages):
    for (status, _, errors), message in zip(
        ends_of(inputs, tmp_path, spoil), messages, strict=True
    ):
        assert status == 1
        assert message in errors


def test_what_only_the_first_host_sees_stops_all(inputs, tmp_path):
    command = interrupted.arguments(inputs, tmp_path, "--name", "run", "--resume")
    ends = [interrupted.finish(host) for host in interrupted.start_hosts(command, command)]
    assert [status for status, _, _ in ends] == [1, 1], ends
    assert "error: There is no run to resume" in ends[0][2]
    assert "error: Host 0 failed, so this one stops: There is no run to resume" in ends[1][2]
