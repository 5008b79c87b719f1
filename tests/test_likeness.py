"""Which architecture a checkpoint is of; `python tests/test_likeness.py` prints the table anew."""

import csv
import time
from pathlib import Path

import numpy as np
import pytest

import importers
from importers.entries import shapes_of
from importers.families import FAMILIES
from importers.likeness import likeliest, sketch_of
from tlv_jax import models

TABLE = Path(importers.__file__).parent / "key_sketches.csv"
QUICK = ("alexnet", "resnet18", "vgg16", "vit_b_32", "swin_t", "shufflenet_v2_x1_0")


def line_of(name):
    return f"{name},{' '.join(f'{number:08x}' for number in sketch_of(shapes_of(name)))}"


def read_table():
    return TABLE.read_text().splitlines()


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in models.names()],
)
def test_sketches_are_those_of_the_networks(name):
    assert line_of(name) in read_table()


def test_every_architecture_has_a_sketch_of_its_own():
    rows = list(csv.DictReader(read_table()))
    assert [row["architecture"] for row in rows] == sorted(models.names())
    assert len({row["hashes"] for row in rows}) == len(rows)


@pytest.mark.parametrize("name", QUICK)
def test_an_architecture_is_most_like_itself(name):
    assert likeliest(shapes_of(name)) == ((name,), 1.0)


@pytest.mark.parametrize("name", QUICK)
def test_a_backbone_with_a_few_keys_too_many_is_known(name):
    shapes = shapes_of(name)
    kept = {FAMILIES[name].stem, *list(shapes)[: len(shapes) * 3 // 4]}
    extra = {"extra.weight": (3, 3), "extra.bias": (3,)}
    names, share = likeliest({key: shapes[key] for key in kept} | extra)
    assert name in names
    assert 0.5 < share < 1


@pytest.mark.parametrize("shapes", [{}, {"mine.weight": (3,)}])
def test_what_is_like_nothing_has_no_name(shapes):
    assert likeliest(shapes) == ((), 0.0)


def test_keys_of_older_files_are_known():
    shapes = {
        key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): shape
        for key, shape in shapes_of("vit_b_32").items()
    }
    assert likeliest(shapes) == (("vit_b_32",), 1.0)


def test_all_architectures_are_compared_in_no_time():
    # Of many keys. No other network is built for it, which would take a second each.
    shapes = {f"layer.{number}.weight": (number, 7) for number in range(2000)}
    arrays = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    with pytest.raises(importers.StateDictError, match="does not fit 'alexnet'"):
        importers.convert("alexnet", arrays)
    start = time.perf_counter()
    likeliest(shapes)
    assert time.perf_counter() - start < 0.5


if __name__ == "__main__":
    print("architecture,hashes", *map(line_of, sorted(models.names())), sep="\n")
