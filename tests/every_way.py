"""A network that shares its channels in every way, and how to hide a small one in a wide one."""

import jax
import jax.numpy as jnp
import numpy as np

import tlv_jax

NHWC = ("NHWC", "HWIO", "NHWC")
IMAGES = np.random.default_rng(9).normal(size=(2, 8, 8, 3)).astype(np.float32)


def every_way(params, images):
    """Every way in which channels are shared. `[B, H, W, 3] -> [B, N]`."""

    def conv(name, inputs, groups=1):
        outputs = jax.lax.conv_general_dilated(
            inputs,
            params[name]["kernel"],
            (1, 1),
            "SAME",
            dimension_numbers=NHWC,
            feature_group_count=groups,
        )
        return outputs + params[name]["bias"].reshape(1, 1, 1, -1)

    def norm(name, inputs):
        scale, bias, mean, var = (
            params[name][part].reshape(1, 1, 1, -1) for part in ("scale", "bias", "mean", "var")
        )
        return (inputs - mean) * jax.lax.rsqrt(var + 1e-5) * scale + bias

    stem = jax.nn.relu(norm("norm", conv("stem", images)))
    branch = jax.nn.relu(conv("depthwise", conv("expand", stem), params["expand"]["bias"].size))
    gate = jax.nn.sigmoid(conv("gate", branch.mean((1, 2), keepdims=True)))
    added = stem + conv("project", branch * gate)
    joined = jnp.concatenate((added, jax.nn.relu(conv("side", stem))), axis=-1)
    pooled = joined.reshape(*joined.shape[:1], 2, 4, 2, 4, -1).mean((2, 4))
    flat = pooled.reshape(pooled.shape[0], -1)
    return flat @ params["head"]["kernel"] + params["head"]["bias"].reshape(1, -1)


SPACES = {"stem": "a", "expand": "b", "side": "c", "gate": "b", "project": "a", "depthwise": "b"}


def draw(seed, a, b, c):
    generator = np.random.default_rng(seed)

    def normal(*shape):
        return generator.standard_normal(shape).astype(np.float32)

    def layer(size, inputs, outputs):
        kernel = normal(size, size, inputs, outputs) / np.float32(np.sqrt(size * size * inputs))
        return {"kernel": kernel, "bias": normal(outputs)}

    return {
        "stem": layer(3, 3, a),
        "norm": {"scale": normal(a), "bias": normal(a), "mean": normal(a), "var": normal(a) ** 2},
        "expand": layer(1, a, b),
        "depthwise": layer(3, 1, b),
        "gate": layer(1, b, b),
        "project": layer(1, b, a),
        "side": layer(3, a, c),
        "head": {"kernel": normal(4 * (a + c), 5) / 4, "bias": normal(5)},
    }


def embedded(small, seed, sizes, rank):
    """The small network within a wider one, at random places and in the same order.

    What else the wider network has is computed from small weights and read by nobody. For the rank
    `first` the places are the first ones.
    """
    wide = jax.tree.map(lambda leaf: leaf * np.float32(0.01), draw(seed, **sizes))
    generator = np.random.default_rng(seed + 1)
    widths = {"a": small["stem"]["bias"].size, "b": small["gate"]["bias"].size}
    widths["c"] = small["side"]["bias"].size
    places = {
        space: np.sort(generator.permutation(sizes[space])[: widths[space]])
        if rank != "first"
        else np.arange(widths[space])
        for space in "abc"
    }
    reads = {"expand": "a", "gate": "b", "project": "b", "side": "a"}
    for name, space in SPACES.items():
        inputs = places[reads[name]] if name in reads else np.arange(small[name]["kernel"].shape[2])
        kernel = wide[name]["kernel"]
        if name in reads:
            others = np.setdiff1d(np.arange(kernel.shape[2]), inputs)
            kernel[:, :, others] = 0
        kernel[:, :, inputs[:, None], places[space][None]] = small[name]["kernel"]
        wide[name]["bias"][places[space]] = small[name]["bias"]
    for part in small["norm"]:
        wide["norm"][part][places["a"]] = small["norm"][part]
    joined = np.concatenate((places["a"], sizes["a"] + places["c"]))
    every = np.concatenate([joined + pixel * (sizes["a"] + sizes["c"]) for pixel in range(4)])
    wide["head"]["kernel"][:] = 0
    wide["head"]["kernel"][every] = small["head"]["kernel"]
    wide["head"]["bias"] = small["head"]["bias"]
    return wide


def of_every_way(params):
    return tlv_jax.trace(every_way, params, IMAGES)


def narrowed(seed, rank):
    """A network within a wider one, and a target of the smaller one's shapes."""
    small = draw(seed, a=6, b=8, c=5)
    wide = embedded(small, seed, {"a": 11, "b": 13, "c": 7}, rank)
    return small, of_every_way(wide), of_every_way(draw(seed + 7, a=6, b=8, c=5))
