"""What the training benchmark rests on: rows with every column, and a quiet machine."""

import math

import pytest
import torch

from benchmarks import train


@pytest.fixture
def one_thread():
    """PyTorch's threads wait in a busy loop, which takes seconds on a busy machine."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_row_has_every_column():
    cells = train.measure("squeezenet1_1@32", rounds=2, seconds=0.0, batch=2)
    assert cells.keys() == train.COLUMNS.keys()
    assert all(math.isfinite(cell) and cell > 0 for cell in cells.values()), cells
    fast = cells["cpu_convolutions ms"]
    assert cells["cpu_convolutions / plain"] == fast / cells["plain ms"]
    better = min(cells["torch NCHW ms"], cells["torch channels-last ms"])
    assert cells["cpu_convolutions / better torch"] == fast / better
    assert train.row("squeezenet1_1@32", cells).count("|") == len(train.COLUMNS) + 2


@pytest.mark.parametrize(("used", "warned"), [(0.0, False), (1e6, True)])
def test_other_programs_give_a_warning(capsys, monkeypatch, used, warned):
    clock = iter([0.0, used])
    monkeypatch.setattr(train, "seconds_of_others", lambda: next(clock))
    monkeypatch.setattr(train, "turn", lambda *_: 1.0)
    monkeypatch.setattr(train, "jax_step", lambda *_: (None, 1.0, 1))
    monkeypatch.setattr(train, "torch_step", lambda *_: None)
    train.measure("resnet18@32", rounds=1, seconds=0.0, batch=1)
    assert ("resnet18@32: other programs used" in capsys.readouterr().err) == warned


def test_a_turn_counts_at_least_one_step_and_not_the_first():
    calls = []
    assert train.turn(lambda: calls.append(None), 0.0) > 0
    assert len(calls) == 2
