"""A Flax Linen module as a target."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

import tlv_jax
from train.hints import module_path, watched
from train.target import Change, Target, modes_of

__all__ = ["linen_target"]


def linen_target(model: nn.Module, key: jax.Array, images: jax.Array) -> Target:
    """Initializes and traces a module.

    Its penultimate features are what its method `features` gives to its method `head`, as in the
    zoo. Without these methods they are what its last dense layer is called on.

    Args:
      model: called as `model(images)`, and told whether it trains by an argument named `train`,
        `training`, `is_training`, `deterministic` or `use_running_average`, if it has one.
      key: of the initialization, consumed.
      images: `[1, H, W, 3]` of any content.
    """
    mode = modes_of(type(model).__call__)
    variables = jax.jit(functools.partial(model.init, **mode(False)))(key, images)
    evaluation = functools.partial(model.apply, **mode(False))
    network = tlv_jax.trace(evaluation, variables, images)
    apply: Any = tlv_jax.cpu_convolutions(model.apply)  # typed by what `mutable` decides
    path_of_head = _path_of_head(network)
    parts = callable(getattr(model, "features", None)) and callable(getattr(model, "head", None))

    def train(
        params: Any, state: Any, images: jax.Array, key: jax.Array, change: Change | None
    ) -> tuple[jax.Array, Any]:
        return train_watched(params, state, images, key, change, ())[:2]

    def train_watched(
        params: Any,
        state: Any,
        images: jax.Array,
        key: jax.Array,
        change: Change | None,
        paths: Sequence[str],
    ) -> tuple[jax.Array, Any, list[Any]]:
        watching = watched(model.apply, [module_path(path) for path in paths])
        apply: Any = tlv_jax.cpu_convolutions(watching)
        variables = {"params": params, **state}
        # Linen folds the path of a module into the key, so that the two calls below may have the
        # same. Streams of other names than dropout's fall back to that of the parameters.
        options: Any = {**mode(True), "rngs": {"params": key, "dropout": key}}
        updating = {**options, "mutable": list(state)}
        if change is None:
            (logits, updated), seen = apply(variables, images, **updating)
        elif parts:
            (features, updated), seen = apply(variables, images, method="features", **updating)
            logits, _ = apply(variables, change(features), method="head", **options)
        else:
            with nn.intercept_methods(_changing(path_of_head, change)):
                (logits, updated), seen = apply(variables, images, **updating)
        return _logits(logits), {**state, **updated}, seen

    def evaluate(params: Any, state: Any, images: jax.Array) -> jax.Array:
        return _logits(apply({"params": params, **state}, images, **mode(False)))

    return Target(network, _split, train, evaluate, train_watched)


def _split(variables: Any) -> tuple[Any, Any]:
    state = {name: value for name, value in variables.items() if name != "params"}
    return variables["params"], state


def _logits(answer: Any) -> jax.Array:
    # GoogLeNet and InceptionV3 also return those of auxiliary heads.
    return getattr(answer, "logits", answer)


def _path_of_head(network: tlv_jax.Network) -> tuple[str, ...]:
    """The names of the modules around the last dense layer."""
    dense = [layer.path for layer in network.layers if layer.kind == "dense"]
    return tuple(dense[-1].split("/")[1:]) if dense else ()


def _changing(path: tuple[str, ...], change: Any) -> Any:
    """An interceptor that changes what the module at a path is called on."""

    def interceptor(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if path and context.module.path == path and context.method_name == "__call__":
            args = (change(args[0]), *args[1:])
        return call(*args, **kwargs)

    return interceptor
