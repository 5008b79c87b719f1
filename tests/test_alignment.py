"""Dynamic programming, held to the recorded answers of DPIAT's published code."""

import json
from pathlib import Path

import numpy as np
import oracles
import pytest

from tlv_jax import Layer, matching
from tlv_jax.layers.blocks import flatten_blocks
from tlv_jax.matching import alignment

GOLDEN = Path(__file__).parent / "golden"
RECORDED = json.loads((GOLDEN / "iat_matching.json").read_text())
FLAT = json.loads((GOLDEN / "iat_flat_matching.json").read_text())
KINDS = {"Conv2d": "conv", "Linear": "dense", "BatchNorm2d": "norm"}


def recorded_layer(model, name):
    if name not in RECORDED["shapes"][model]:
        # An activation or a pool: of a kind of its own, so that it fits nothing.
        return Layer(name, f"{model}/{name}", "", (1,), (0,))
    kind, shape = RECORDED["shapes"][model][name]
    order = (*range(2, len(shape)), 1, 0) if len(shape) > 1 else (0,)
    return Layer(name, KINDS[kind], name, tuple(shape[axis] for axis in order), order)


def recorded_blocks(model, names=None):
    names = RECORDED["blocks"][model] if names is None else names
    return tuple(
        recorded_layer(model, name) if isinstance(name, str) else recorded_blocks(model, name)
        for name in names
    )


def paths(pairs):
    return [[pair.source.path, pair.target.path] for pair in pairs]


@pytest.mark.parametrize("case", RECORDED["dp_matching"], ids=lambda c: f"{c['src']}-{c['dst']}")
def test_by_score_agrees_with_the_recorded_answers(case):
    source, target = recorded_blocks(case["src"]), recorded_blocks(case["dst"])
    assert paths(matching.ByScore()(source, target)) == case["pairs"]
    scores = matching.shape_scores(flatten_blocks(source), flatten_blocks(target))
    best, _ = alignment.align_blocks(source, target, scores)
    own = len(RECORDED["shapes"][case["dst"]])
    assert best / own == pytest.approx(case["sim"], rel=1e-9)


@pytest.mark.parametrize("case", FLAT, ids=lambda c: f"{c['src']}-{c['dst']}")
def test_by_score_flat_agrees_with_the_recorded_answers(case):
    source, target = (
        [recorded_layer(model, name) for name in RECORDED["shapes"][model]]
        for model in (case["src"], case["dst"])
    )
    assert paths(matching.ByScoreFlat()(source, target)) == case["pairs"]


@pytest.mark.parametrize("seed", range(20))
def test_alignment_is_the_best_of_all(seed):
    generator = np.random.default_rng(seed)
    scores = generator.uniform(size=generator.integers(1, 5, 2)).round(2)
    scores[generator.uniform(size=scores.shape) < 0.3] = 0
    best, chosen = alignment.align(scores)
    assert best == pytest.approx(oracles.best_alignment(scores))
    assert oracles.alignment_score(scores, chosen) == pytest.approx(best)
