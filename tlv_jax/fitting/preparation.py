"""What a fit knows before it walks through the target."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from tlv_jax.arrays import check_key, placed
from tlv_jax.errors import OptionError
from tlv_jax.fitting.aims import Aim, aims_of
from tlv_jax.fitting.following import Followed, Follower
from tlv_jax.fitting.goals import plan_goals
from tlv_jax.fitting.importance import importance
from tlv_jax.fitting.places import draw_places
from tlv_jax.fitting.roles import Role, roles_of
from tlv_jax.fitting.settings import Fit
from tlv_jax.fitting.signals import Signal, compute_signals
from tlv_jax.layers.interventions import intervene
from tlv_jax.layers.paths import array_leaves, with_leaves
from tlv_jax.network import Network, require_finite, require_runnable, trace
from tlv_jax.types import Array, PyTree

LOOKED_AT = 32  # images that say which channels matter


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """What a fit knows before it walks through the target.

    Attributes:
      dst: the target, traced with the images' size.
      images: as it takes them.
      roles: of its convs, by path.
      aims: what they are to write, by path.
      places: of each grid, `[N, P]`.
      settings: of the fit.
      key: of the transfer.
    """

    dst: Network
    images: Array
    roles: Mapping[str, Role]
    aims: Mapping[str, Aim]
    places: Mapping[tuple[int, ...], np.ndarray]
    settings: Fit
    key: Array

    def follow(self, params: PyTree, *, solve: bool) -> tuple[PyTree, dict[str, Followed]]:
        """Walks through the target with these parameters.

        Args:
          params: of the target.
          solve: whether to replace them on the way.

        Returns:
          The new parameters, and how each conv was met.
        """
        own = array_leaves(params, name="dst")
        leaves = {path: np.array(leaf) for path, leaf in own.items() if _is_number(leaf)}
        follower = Follower(
            self.dst,
            self.roles,
            self.aims,
            self.places,
            leaves,
            penalty=self.settings.penalty,
            deviation=self.settings.deviation,
            solve=solve,
        )
        assert self.dst.fn is not None
        walked = with_leaves(params, own, follower.neutral())
        intervene(
            self.dst.fn,
            walked,
            self.images,
            paths=list(self.roles),
            see=follower.see,
            see_norm=follower.see_norm,
        )
        if follower.pending:
            norm, (conv, _) = next(iter(follower.pending.items()))
            raise OptionError(
                f"dst: norm {norm!r} behind {conv!r} runs in a loop or a branch, where it cannot "
                "be set. Take the norm out of it."
            )
        new = {path: placed(leaf, own[path]) for path, leaf in leaves.items()}
        return with_leaves(params, own, new), follower.followed


def _is_number(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.number)


def prepare(
    src: Network,
    dst: Network,
    images: Any,
    src_images: Any,
    settings: Fit,
    key: Array | None,
) -> Prepared:
    """Checks what `fit` is given, finds the goals, and computes what the source has for them."""
    key = jax.random.key(0) if key is None else key
    check_key(key)
    for network, name in ((src, "src"), (dst, "dst")):
        require_runnable(network, name)
        require_finite(network, name)
    images = _checked(images, "images")
    if src_images is None:
        src_images = _enlarged(images, src, settings.enlarge)
    src_images = _checked(src_images, "src_images")
    if len(src_images) != len(images):
        raise OptionError(
            f"src_images: expected the same {len(images)} images as the target's, got "
            f"{len(src_images)}. Pass them in the same order."
        )
    # As they are for images of this size.
    src, dst = _traced_source(src, src_images), _traced(dst, images)
    src_roles, roles = roles_of(src), roles_of(dst)
    assert src.channels is not None
    worth = importance(src, src_roles, src_images[:LOOKED_AT])
    goals = plan_goals(src_roles, roles, src.channels, worth)
    if not goals:
        raise OptionError(
            "dst: expected convs that can follow convs of src, found none. A fit needs two "
            "convolutional networks; tlv_jax.transfer takes others, too."
        )
    places = {
        size: draw_places(key, size, len(images), settings.rows)
        for size in dict.fromkeys(role.layer.size for role in roles.values())
    }
    wanted = [
        Signal(part.layer, part.read, roles[path].layer.size)
        for path, goal in goals.items()
        for part in goal.parts
    ]
    found = compute_signals(src, src_images, wanted, places, settings.batch_size)
    return Prepared(dst, images, roles, aims_of(goals, roles, found), places, settings, key)


def _traced(network: Network, images: Array) -> Network:
    assert network.fn is not None
    return trace(network.fn, network.params, images[:1])


def _traced_source(src: Network, images: Array) -> Network:
    try:
        return _traced(src, images)
    except Exception as error:
        error.add_note(
            f"src was called with images of shape {images.shape}. If it takes others, pass them as "
            "src_images, or Fit(enlarge=1) if it takes the target's own."
        )
        raise


def _checked(images: Any, name: str) -> Array:
    """Images as an array, if something can be learned from them."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(images)):
        raise OptionError(
            f"{name}: expected an array of images, got one that is traced. A fit is made once, in "
            "NumPy: call it outside of jax.jit and the like."
        )
    if not hasattr(images, "shape") or len(images.shape) < 3 or len(images) == 0:
        raise OptionError(
            f"{name}: expected an array [N, ...] of images, got "
            f"{getattr(images, 'shape', type(images).__name__)}."
        )
    array = jnp.asarray(images)
    if not bool(jnp.isfinite(array).all()):
        raise OptionError(
            f"{name}: some values are NaN or infinite. Check how they are normalized."
        )
    if not float(jnp.ptp(array)) > 0:
        raise OptionError(
            f"{name}: all values are {float(array.ravel()[0]):.3g}, so nothing can be learned from "
            "them. Pass images of the task, normalized as in training."
        )
    return array


def _enlarged(images: Array, src: Network, times: int) -> Array:
    """The target's images, enlarged for the source."""
    first = next((layer for layer in src.layers if layer.kind == "conv"), None)
    channels = None if first is None else first.shape[-2] * first.groups
    axes = [axis for axis in (images.ndim - 1, 1) if images.shape[axis] == channels]
    if not axes:
        raise OptionError(
            f"src_images: src reads images of {channels} channels, and images have shape "
            f"{images.shape}. Pass the same images as src takes them: src_images=..."
        )
    sizes = [size * times for size in images.shape]
    sizes[0], sizes[axes[0]] = len(images), channels or 1
    return jax.image.resize(images, sizes, "linear")
