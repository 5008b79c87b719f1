import json
from pathlib import Path

import pytest

from tlv_jax import Layer, match_by_index

RECORDED = json.loads((Path(__file__).parent / "golden" / "index_matching.json").read_text())


def layers(prefix, count, kind="conv"):
    return [
        Layer(f"{prefix}{i}", kind, f"{prefix}{i}/kernel", (1, 1, 1, 1), (0, 1, 2, 3))
        for i in range(count)
    ]


@pytest.mark.parametrize("case", RECORDED)
def test_index_matching_agrees_with_the_recorded_answers(case):
    sources, targets = map(int, case.split("->"))
    pairs = match_by_index(layers("s", sources), layers("t", targets))
    assert [int(pair.source.path[1:]) for pair in pairs] == RECORDED[case]
    assert [pair.target.path for pair in pairs] == [f"t{i}" for i in range(targets)]


def test_kinds_are_matched_apart():
    source = [*layers("c", 2), *layers("d", 1, "dense")]
    target = [*layers("e", 1, "dense"), *layers("f", 3), *layers("n", 2, "norm")]
    pairs = match_by_index(source, target)
    assert [(pair.source.path, pair.target.path) for pair in pairs] == [
        ("d0", "e0"), ("c0", "f0"), ("c1", "f1"), ("c1", "f2"),
    ]  # fmt: skip


@pytest.mark.parametrize(("sources", "targets"), [(0, 3), (3, 0), (0, 0)])
def test_nothing_to_match_gives_no_pairs(sources, targets):
    assert match_by_index(layers("s", sources), layers("t", targets)) == ()
