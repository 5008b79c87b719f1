"""A Flax NNX module as a target."""

import functools
from typing import Any

import flax.nnx as nnx
import jax

import tlv_jax
from train.target import Change, Target, modes_of

__all__ = ["nnx_target"]


def nnx_target(module: nnx.Module, images: jax.Array) -> Target:
    """Traces a module, and takes it apart.

    Its penultimate features are what its method `features` gives to its method `head`, as in the
    zoo. Without these methods they are what its last dense layer is called on.

    Args:
      module: called as `module(images)`. Its methods `train` and `eval` tell it and its parts
        whether they train.
      images: `[1, H, W, 3]` of any content.
    """
    mode = modes_of(type(module).__call__)
    module.train()
    training, _, random, _ = _parts(module)
    module.eval()
    evaluation = nnx.graphdef(module)
    network = tlv_jax.trace(lambda module, images: module(images, **mode(False)), module, images)
    streams = {variable.tag for _, variable in nnx.to_flat_state(random)}
    dense = [layer.path for layer in network.layers if layer.kind == "dense"]
    # Methods alone: of attributes of these names it is not known that one follows the other.
    parts = all(callable(getattr(type(module), name, None)) for name in ("features", "head"))

    def merged(graph: Any, params: Any, state: Any) -> Any:
        # The boxes are copied: they hold what the module changes in place.
        return nnx.merge(graph, *jax.tree.map(lambda array: array, (params, random, state)))

    @tlv_jax.cpu_convolutions
    def train(
        params: Any, state: Any, images: jax.Array, key: jax.Array, change: Change | None
    ) -> tuple[jax.Array, Any]:
        module = merged(training, params, state)
        keys = jax.random.split(key, len(streams))
        nnx.reseed(module, policy="match_shape", **dict(zip(sorted(streams), keys, strict=True)))
        if change and parts:
            logits = module.head(change(module.features(images)))  # type: ignore[attr-defined]
            return logits, _parts(module)[3]
        head = _found(module, dense[-1]) if change and dense else None
        own = type(head)
        if head is not None:
            object.__setattr__(head, "__class__", _changing(own, change))
        logits = module(images, **mode(True))
        if head is not None:
            object.__setattr__(head, "__class__", own)
        return logits, _parts(module)[3]

    @tlv_jax.cpu_convolutions
    def evaluate(params: Any, state: Any, images: jax.Array) -> jax.Array:
        return merged(evaluation, params, state)(images, **mode(False))

    return Target(network, lambda module: _parts(module)[1::2], train, evaluate)


def _parts(module: nnx.Module) -> Any:
    """The graph, the parameters, the random streams, and the rest."""
    return nnx.split(module, nnx.Param, nnx.RngState, ...)


def _found(module: Any, path: str) -> Any:
    """The module at a path, such as `blocks/0/dense`."""

    def step(node: Any, name: str) -> Any:
        return node[int(name)] if name.isdigit() else getattr(node, name)

    return functools.reduce(step, path.split("/"), module)


def _changing(own: type, change: Any) -> type:
    """The class of a layer, with a change of what it is called on."""

    def __call__(self: Any, features: jax.Array, *args: Any) -> Any:
        return own.__call__(self, change(features), *args)

    return type(own.__name__, (own,), {"__call__": __call__})
