import functools

import jax
import numpy as np
import pytest
import trees
from helpers import compilations

import tlv_jax
from tlv_jax import permutations, rules, variance_layout, variance_programs, variance_rule
from tlv_jax.compiling import CompilingAhead

VARIANCE = functools.partial(rules.variance, keep="max")
AHEAD = {"jit(_measures)", "jit(_permuted)"}


def lowered(*, factor):
    @jax.jit
    def scaled(x):
        return factor * x

    return scaled, scaled.lower(jax.ShapeDtypeStruct((3,), np.float32))


def test_what_was_compiled_ahead_is_only_called():
    ahead, ones = CompilingAhead(), np.ones(3, np.float32)
    functions, programs = zip(*(lowered(factor=n) for n in range(3)), strict=True)
    with compilations() as counts:
        ahead.start(("scaled", n, program) for n, program in enumerate(programs))
        results = [function(ones) for function in ahead.before("scaled", iter(functions))]
    assert counts == {("jit(scaled)", False): 3}
    assert [result.tolist() for result in results] == [[n] * 3 for n in range(3)]


def test_of_several_programs_of_an_item_the_last_is_awaited():
    ahead, ones = CompilingAhead(), np.ones(3, np.float32)
    functions, programs = zip(*(lowered(factor=n) for n in range(4)), strict=True)
    with compilations() as counts:
        ahead.start(("scaled", 0, program) for program in programs)
        for item in ahead.before("scaled", iter([functions])):
            for function in item:
                function(ones)
    assert counts == {("jit(scaled)", False): 4}


def test_it_starts_once():
    ahead = CompilingAhead()
    ahead.start([])
    ahead.start(pytest.fail("lowered again") for _ in range(1))
    assert list(ahead.before("scaled", iter("ab"))) == ["a", "b"]


def test_nothing_is_compiled_where_jit_is_off():
    with jax.disable_jit():
        CompilingAhead().start(pytest.fail("lowered") for _ in range(1))


def test_a_program_that_cannot_be_compiled_fails_where_it_is_called():
    class Broken:
        def compile(self):
            raise MemoryError

    ahead = CompilingAhead()
    ahead.start([("broken", 0, Broken())])
    assert list(ahead.before("broken", iter("a"))) == ["a"]


def committed(tree, names):
    """The tree on the device, with the layers of these names bound to stay there."""
    device = jax.devices()[0]
    return {
        name: jax.device_put(leaves, device if name in names else None)
        for name, leaves in tree.items()
    }


def as_torch_stores_it(tree):
    return {
        name: {
            "weight" if leaf == "kernel" else leaf: np.moveaxis(array, (-1, -2), (0, 1))
            if leaf == "kernel"
            else array
            for leaf, array in leaves.items()
        }
        for name, leaves in tree.items()
    }


@pytest.mark.parametrize("names", [(), ("conv1",), ("conv1", "conv2", "conv10", "fc")])
@pytest.mark.parametrize("stored", [dict, as_torch_stores_it])
def test_a_first_transfer_compiles_no_program_twice(key, stored, names):
    source = committed(stored(trees.source_tree()), names)
    target = committed(stored(trees.target_tree()), names[:1])
    plan = tlv_jax.plan_transfer(source, target, rule=VARIANCE, kinds=("conv", "dense"))
    variance_rule._ahead.cache_clear()
    variance_programs._measures.clear_cache()
    permutations._permuted.clear_cache()
    with compilations() as counts:
        jax.block_until_ready(tlv_jax.apply_transfer(plan, key, source, target))
        compiled = counts.total()
        jax.block_until_ready(tlv_jax.apply_transfer(plan, key, source, target))
    assert counts.total() == compiled
    assert {name for name, by_caller in counts if not by_caller} == AHEAD
    assert not {name for name, by_caller in counts if by_caller} & AHEAD


def test_parts_that_are_filled_alike_share_a_program(key, monkeypatch):
    monkeypatch.setattr(variance_layout, "PLACES", 1)  # each target is a part by itself
    variance_layout.lay_out.cache_clear()
    source = {"conv": {"kernel": trees.normal(0, 3, 3, 9, 7)}}
    target = {f"conv{n}": {"kernel": trees.normal(n, 3, 3, 5, 3)} for n in range(1, 4)}
    plan = tlv_jax.plan_transfer(source, target, rule=VARIANCE)
    assert len(plan.pairs) == 3
    with compilations() as counts:
        new = tlv_jax.apply_transfer(plan, key, source, target)
    variance_layout.lay_out.cache_clear()
    assert counts["jit(filled)", True] == counts["jit(looked_up)", True] == 1
    assert len({leaf.tobytes() for leaf in map(np.asarray, jax.tree.leaves(new))}) == 3
