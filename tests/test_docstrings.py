"""The examples in docstrings run and print what they say, and what is called first has one."""

import doctest

import pytest

import importers
import tlv_jax
import train

MODULES = (
    tlv_jax,
    tlv_jax.plots,
    tlv_jax.rules,
    tlv_jax.matching,
    tlv_jax.layers,
    importers,
    train,
)
PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in MODULES
    for name in module.__all__
}
CALLED_FIRST = (
    *("trace", "transfer", "plan_transfer", "apply_transfer", "report", "html_report"),
    *("similarity", "fit", "fit_report", "probe", "ridge_head", "lsuv", "crossover"),
    *("cpu_convolutions", "recompute_statistics"),
    *(f"plots.{name}" for name in tlv_jax.plots.__all__),
)
FINDER = doctest.DocTestFinder(exclude_empty=True)
EXAMPLES = {
    test.name: test
    for name, described in PUBLIC.items()
    for test in FINDER.find(described, name, globs={})
    if test.examples
}


def run(test, names):
    """Runs one example with names that are there before it, and returns those that are after."""
    test.globs = dict(names)
    said = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    assert not runner.run(test, out=said.append, clear_globs=False).failed, "".join(said)
    return test.globs


@pytest.fixture(scope="module")
def names():
    """What the examples of the two packages leave behind, from which all others go on."""
    left = {}
    for package in (tlv_jax, importers):
        parsed = doctest.DocTestParser().get_doctest(
            package.__doc__, {}, package.__name__, package.__file__, 0
        )
        left = run(parsed, left)
    return left


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs(names, name):
    run(EXAMPLES[name], names)


@pytest.mark.parametrize(
    "name",
    [
        *(f"tlv_jax.{name}" for name in CALLED_FIRST),
        *("importers.load", "importers.export", "importers.Pretrained"),
    ],
)
def test_what_is_called_first_has_an_example(name):
    assert EXAMPLES[name].examples
