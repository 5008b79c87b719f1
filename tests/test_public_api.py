import importlib
import inspect

import pytest

PACKAGES = (
    *("tlv_jax", "tlv_jax.layers", "tlv_jax.matching", "tlv_jax.rules", "tlv_jax.models"),
    *("importers", "train"),
)


def public_things():
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isroutine(thing) or inspect.ismodule(thing):
                yield pytest.param(thing, id=f"{package}.{name}")


@pytest.mark.parametrize("package", PACKAGES)
def test_the_public_names_are_unique_and_exist(package):
    module = importlib.import_module(package)
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("thing", list(public_things()))
def test_everything_public_is_annotated_and_documented(thing):
    assert inspect.getdoc(thing)
    functions = [thing] if inspect.isfunction(thing) else []
    if inspect.isclass(thing) and "__call__" in vars(thing):
        functions.append(vars(thing)["__call__"])
    for function in functions:
        assert inspect.getdoc(function)
        signature = inspect.signature(function)
        assert signature.return_annotation is not signature.empty
        for name, parameter in signature.parameters.items():
            assert name == "self" or parameter.annotation is not parameter.empty, parameter
