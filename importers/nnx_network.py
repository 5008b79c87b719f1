"""A network of `tlv_jax.models` as a Flax NNX module."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from tlv_jax.errors import OptionError, ParameterTreeError
from tlv_jax.layers.paths import leaf_path

__all__ = ["NNXNetwork"]

COLLECTIONS = {"params": nnx.Param, "batch_stats": nnx.BatchStat}


class NNXNetwork(nnx.Module):
    """Computes what a Linen module computes, and keeps its variables itself.

        module = importers.load("resnet18").to_nnx()
        logits = module(images)
        module.train()  # and `module.eval()` goes back
        grads = nnx.grad(loss)(module, images, labels)

    It begins in evaluation. In training each call normalizes with the statistics of its batch,
    updates the running ones in place, and draws new dropout masks. `nnx.jit` and `nnx.grad` hand
    the updates on; `jax.jit` loses them, as those of any NNX module.

    The paths of the variables are those of Linen, such as `params/layer1.0/conv1/kernel`. So are
    the layers that `tlv_jax.trace(lambda module, images: module(images), module, images)` finds.

    Attributes:
      model: the Linen module.
      params: nested dict of `nnx.Param`.
      batch_stats: nested dict of `nnx.BatchStat`; empty for a network without batch norm.
      dropout: the stream of random keys.
      deterministic: whether nothing is dropped; see `use_running_average`.
      use_running_average: whether norms use their running statistics. The network trains as a
        whole, so it is always as `deterministic`; `train()`, `eval()` and `nnx.view` set both.
    """

    def __init__(self, model: nn.Module, variables: Mapping[str, Any], rngs: nnx.Rngs) -> None:
        """Copies the variables.

        Args:
          model: with the methods of `tlv_jax.models.Classifier`.
          variables: as `model.apply` takes them.
          rngs: gives the dropout its keys: its stream "dropout", or the default one.
        """
        self.model = model
        for name, kind in COLLECTIONS.items():
            # A Param may be written in place, which must not reach the arrays that were given.
            copies = jax.tree.map(jnp.array, variables.get(name, {}))
            setattr(self, name, nnx.data(jax.tree.map(kind, copies)))
        self.dropout = rngs["dropout"].fork()
        self.deterministic = True
        self.use_running_average = True

    def __call__(self, images: jax.Array) -> Any:
        """Classifies images. `[B, H, W, C] -> [B, N]`.

        Raises:
          ImageError: for images of another channel count, or too small.
          OptionError: if `deterministic` and `use_running_average` differ.
        """
        return self._apply("__call__", images)

    def features(self, images: jax.Array) -> jax.Array:
        """The last feature maps, averaged over all places. `[B, H, W, C] -> [B, D]`."""
        return self._apply("features", images)

    def head(self, features: jax.Array) -> jax.Array:
        """The logits of what `features` returns. `[B, D] -> [B, N]`."""
        return self._apply("head", features)

    @property
    def variables(self) -> dict[str, Any]:
        """The present variables, as `model.apply` takes them."""
        state = {name: _unboxed(getattr(self, name)) for name in COLLECTIONS}
        return {name: arrays for name, arrays in state.items() if arrays}

    def load(self, variables: Mapping[str, Any]) -> None:
        """Writes variables of the Linen module, for example of a checkpoint, into this one.

        Args:
          variables: all collections, as `model.apply` takes them; arrays are cast to the dtypes of
            this module.

        Raises:
          ParameterTreeError: if an array is missing, in excess or of another shape. Nothing is
            written then.
        """
        given = _by_path({name: tree for name, tree in variables.items() if tree})
        own = _by_path(self.variables)
        if wrong := sorted(given.keys() ^ own.keys()):
            raise ParameterTreeError(
                f"variables: expected the {len(own)} arrays of the network, got {len(given)}; "
                f"{wrong[0]!r} is {'missing' if wrong[0] in own else 'not one of them'}. Pass "
                'what model.apply takes: {"params": ..., "batch_stats": ...}.'
            )
        for path, array in own.items():
            if given[path].shape != array.shape:
                raise ParameterTreeError(
                    f"variables: expected {path!r} of shape {array.shape}, got "
                    f"{given[path].shape}. Pass variables of the same architecture."
                )
        for path, box in _by_path({name: getattr(self, name) for name in COLLECTIONS}).items():
            box[...] = jnp.array(given[path], own[path].dtype)

    def set_view(
        self, deterministic: bool | None = None, use_running_average: bool | None = None
    ) -> None:
        """Called by `nnx.view`, to set the mode of a copy."""
        if deterministic is not None:
            self.deterministic = deterministic
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def _apply(self, method: str, inputs: jax.Array) -> Any:
        if self.deterministic != self.use_running_average:
            raise OptionError(
                f"deterministic={self.deterministic} and use_running_average="
                f"{self.use_running_average}: expected both alike, as the network trains as a "
                "whole. Call module.train() or module.eval()."
            )
        if self.deterministic:
            return self.model.apply(self.variables, inputs, method=method)
        outputs, updated = self.model.apply(
            self.variables,
            inputs,
            train=True,
            method=method,
            mutable=["batch_stats"],
            rngs={"dropout": self.dropout()},
        )
        nnx.update(self, updated)
        return outputs


def _is_box(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _unboxed(boxed: Any) -> Any:
    return jax.tree.map(lambda box: box[...], boxed, is_leaf=_is_box)


def _by_path(variables: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(variables, is_leaf=_is_box)
    return {leaf_path(keys): leaf for keys, leaf in leaves}
