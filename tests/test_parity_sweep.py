"""All of torchvision's classifiers against torch, each at two sizes of images where it takes them.

`make parity` keeps what was measured in a table.
"""

import re
import time
from typing import NamedTuple

import jax
import pytest
from helpers import import_torchvision
from parity import evaluation_errors, parameter_count, training_errors, twins_of

from tlv_jax import models

torchvision = import_torchvision()

TOLERANCE, TRAINING_TOLERANCE = 1e-5, 1e-4
NAMES = torchvision.models.list_models(module=torchvision.models)
COLUMNS = ("name", "parameters", "first third", "second third", "last third", "logits", "training")
HEADER = """\
# Parity with torchvision

Every network of torchvision with random weights and batch statistics, in float32 on the CPU.
An error is the largest difference from torchvision over the largest value of the same output.
Each cell has the worst error of its layers, by depth, over all sizes of images. In training,
logits and updated batch statistics are compared. Tolerances: 1e-5, in training 1e-4.
`make parity` measures all of it and writes this file.

"""


class Sizes(NamedTuple):
    """Height and width of the images in evaluation, and their side in training."""

    evaluation: tuple[tuple[int, int], ...]
    training: int


def sizes_of(name):
    side = getattr(models.create(name), "image_size", None)
    if side:
        return Sizes(((side, side),), side)
    if name == "inception_v3":
        return Sizes(((299, 283), (95, 112)), 299)
    # Odd sides show every rounding; in training, batch norms need some values a channel.
    return Sizes(((97, 81), (64, 96)), 128)


def test_the_sweep_is_complete():
    assert len(NAMES) == 80
    assert set(NAMES) <= set(models.names())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_layer_matches_torchvision(name, request):
    start = time.perf_counter()
    sizes = sizes_of(name)
    twins, depths = twins_of(name), [[], [], [], []]
    for sides in sizes.evaluation:
        errors = evaluation_errors(twins, sides)
        *layers, logits = errors.values()
        for number, error in enumerate(layers):
            depths[3 * number // len(layers)].append(error)
        depths[3].append(logits)
        jax.clear_caches()
    logits, stats = training_errors(twins, (sizes.training, sizes.training))
    jax.clear_caches()
    worst = [max(errors) for errors in depths]
    training = max((*logits, *stats.values()))
    row = [name, f"{parameter_count(name):,}", *(f"{error:.1e}" for error in (*worst, training))]
    print(*row, f"{time.perf_counter() - start:.0f} s", sep="  ", flush=True)
    assert max(worst) <= TOLERANCE
    assert training <= TRAINING_TOLERANCE
    if request.config.option.parity_table:
        keep(row, request.config.option.parity_table)


def keep(row, path):
    """Puts a row in its place in the table, whose other rows stay."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = {match[1]: line for line in lines if (match := re.match(r"\| `(\w+)` \|", line))}
    cells = [f"`{row[0]}`", *row[1:]]
    rows[row[0]] = f"| {' | '.join(cells)} |"
    titles = f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(cells)}\n"
    path.parent.mkdir(exist_ok=True)
    path.write_text(HEADER + titles + "".join(f"{rows[name]}\n" for name in sorted(rows)))
