# %% [markdown]
# # Your own network
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tlv-jax/tlv_jax/blob/main/notebooks/your_own_network.ipynb)
#
# A target is any network of yours, traced with one call. This notebook writes the same network in
# Flax Linen, Flax NNX and Equinox, gives each the weights of a pretrained one, and trains it in a
# loop of its own.

# %%
import importlib.util

# Colab's own JAX stays as it is.
if importlib.util.find_spec("tlv_jax") is None:
    # %pip install -q "tlv-jax[demo] @ git+https://github.com/tlv-jax/tlv_jax"
    importlib.invalidate_caches()
if importlib.util.find_spec("equinox") is None:
    # %pip install -q equinox
    importlib.invalidate_caches()

# %%
import dataclasses

import equinox as eqx
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from elpv_dataset.utils import load_dataset
from flax import linen as nn
from flax import nnx
from PIL import Image

import importers
import tlv_jax
from tlv_jax import models

source = importers.load("efficientnet_lite0")
src = source.network
image = jnp.zeros((1, 64, 64, 3))
print(src)

# %% [markdown]
# ## Flax Linen
#
# The network is one of no zoo: a stem, and blocks that widen, filter each channel, and narrow. Its
# norms are group norms, those of the source batch norms. Such norms give nothing to each other:
# kernels alone are moved.

# %%
BLOCKS = ((24, 2), (24, 1), (40, 2), (40, 1), (112, 2), (112, 1))  # width and stride


class LinenBlock(nn.Module):
    width: int
    stride: int

    @nn.compact
    def __call__(self, x):
        wide = 6 * x.shape[-1]
        y = nn.relu(nn.GroupNorm(8)(nn.Conv(wide, (1, 1), use_bias=False)(x)))
        y = nn.Conv(wide, (3, 3), self.stride, feature_group_count=wide, use_bias=False)(y)
        y = nn.Conv(self.width, (1, 1), use_bias=False)(nn.relu(nn.GroupNorm(8)(y)))
        y = nn.GroupNorm(8)(y)
        return x + y if x.shape == y.shape else y


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.GroupNorm(8)(nn.Conv(32, (3, 3), 2, use_bias=False)(images)))
        for width, stride in BLOCKS:
            x = LinenBlock(width, stride)(x)
        return nn.Dense(2)(x.mean((1, 2)))


linen = LinenNet()
variables = jax.jit(linen.init)(jax.random.key(0), image)

dst = tlv_jax.trace(linen.apply, variables, image)
linen_variables = tlv_jax.transfer(src, dst)
print(linen.apply(linen_variables, image).shape)

# %% [markdown]
# What the plan says: each layer of the target in order of execution, and the layer of the source
# that it takes. Below the table stands what keeps its own weights, and why.

# %%
plan = tlv_jax.plan_transfer(src, dst)
print(plan)

# %% [markdown]
# ## Flax NNX
#
# `trace` takes the module itself, and `transfer` returns a new one.


# %%
class NNXBlock(nnx.Module):
    def __init__(self, width_in, width, stride, rngs):
        wide = 6 * width_in
        self.expand = nnx.Conv(width_in, wide, (1, 1), use_bias=False, rngs=rngs)
        self.norm1 = nnx.GroupNorm(wide, 8, rngs=rngs)
        self.depthwise = nnx.Conv(
            wide, wide, (3, 3), stride, feature_group_count=wide, use_bias=False, rngs=rngs
        )
        self.norm2 = nnx.GroupNorm(wide, 8, rngs=rngs)
        self.project = nnx.Conv(wide, width, (1, 1), use_bias=False, rngs=rngs)
        self.norm3 = nnx.GroupNorm(width, 8, rngs=rngs)

    def __call__(self, x):
        y = nnx.relu(self.norm1(self.expand(x)))
        y = nnx.relu(self.norm2(self.depthwise(y)))
        y = self.norm3(self.project(y))
        return x + y if x.shape == y.shape else y


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 32, (3, 3), 2, use_bias=False, rngs=rngs)
        self.norm = nnx.GroupNorm(32, 8, rngs=rngs)
        widths = (32, *(width for width, _ in BLOCKS))
        self.blocks = nnx.List(
            NNXBlock(width_in, width, stride, rngs)
            for width_in, (width, stride) in zip(widths, BLOCKS, strict=False)
        )
        self.head = nnx.Linear(widths[-1], 2, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.norm(self.stem(images)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


plans = {"Linen": plan}
if tuple(map(int, flax.__version__.split(".")[:2])) >= (0, 12):
    module = NNXNet(nnx.Rngs(0))
    dst_nnx = tlv_jax.trace(lambda module, images: module(images), module, image)
    plans["NNX"] = tlv_jax.plan_transfer(src, dst_nnx)
    module = tlv_jax.transfer(src, dst_nnx)
    print(type(module).__name__, module(image).shape)
else:
    print(f"left out: NNX modules need Flax 0.12, and this is {flax.__version__}")

# %% [markdown]
# ## Equinox
#
# Equinox keeps channels first, and its kernels have other axes. Tracing finds them by what the
# operations do.


# %%
class EquinoxBlock(eqx.Module):
    layers: list
    residual: bool

    def __init__(self, width_in, width, stride, key):
        keys, wide = jax.random.split(key, 3), 6 * width_in
        self.layers = [
            eqx.nn.Conv2d(width_in, wide, 1, use_bias=False, key=keys[0]),
            eqx.nn.GroupNorm(8, wide),
            jax.nn.relu,
            eqx.nn.Conv2d(
                wide, wide, 3, stride, padding=1, groups=wide, use_bias=False, key=keys[1]
            ),
            eqx.nn.GroupNorm(8, wide),
            jax.nn.relu,
            eqx.nn.Conv2d(wide, width, 1, use_bias=False, key=keys[2]),
            eqx.nn.GroupNorm(8, width),
        ]
        self.residual = stride == 1

    def __call__(self, x):
        y = x
        for layer in self.layers:
            y = layer(y)
        return x + y if self.residual else y


class EquinoxNet(eqx.Module):
    layers: list
    head: eqx.nn.Linear

    def __init__(self, key):
        widths, keys = (32, *(width for width, _ in BLOCKS)), jax.random.split(key, 8)
        self.layers = [
            eqx.nn.Conv2d(3, 32, 3, 2, padding=1, use_bias=False, key=keys[0]),
            eqx.nn.GroupNorm(8, 32),
            jax.nn.relu,
            *(
                EquinoxBlock(widths[number], width, stride, keys[1 + number])
                for number, (width, stride) in enumerate(BLOCKS)
            ),
        ]
        self.head = eqx.nn.Linear(widths[-1], 2, key=keys[-1])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean((1, 2)))


net = EquinoxNet(jax.random.key(0))
image_first = jnp.zeros((1, 3, 64, 64))
dst_equinox = tlv_jax.trace(lambda net, images: jax.vmap(net)(images), net, image_first)
plans["Equinox"] = tlv_jax.plan_transfer(src, dst_equinox)
net = tlv_jax.transfer(src, dst_equinox)
print(type(net).__name__, jax.vmap(net)(image_first).shape)

# %% [markdown]
# The three plans name the same layers of the source, in the same order:

# %%
givers = {library: [giver for giver, _ in plan.pairs] for library, plan in plans.items()}
for library in plans:
    print(
        f"{library:8} {len(givers[library])} pairs, as Linen: {givers[library] == givers['Linen']}"
    )

# %% [markdown]
# ## A training loop of your own
#
# The photographs are of solar cells, functional or defective. They are normalized as the source
# expects, since the weights are the source's.

# %%
pixels, defects, _ = load_dataset()
order = np.random.default_rng(0).permutation(len(pixels))[:1000]
preprocess = dataclasses.replace(source.preprocess, resize=64, crop=64)
images = preprocess([Image.fromarray(pixels[number]) for number in order])
labels = (defects[order] > 0.5).astype(int)
held_out = slice(600, None)
print(f"trained on 600, tested on {len(labels[held_out])}")


# %%
apply = tlv_jax.cpu_convolutions(linen.apply)  # makes depthwise convolutions fast on a CPU
optimizer = optax.adamw(1e-3)


@jax.jit
def step(variables, moments, images, labels):
    def loss_of(variables):
        logits = apply(variables, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, gradients = jax.value_and_grad(loss_of)(variables)
    updates, moments = optimizer.update(gradients, moments, variables)
    return optax.apply_updates(variables, updates), moments, loss


def balanced_accuracy(variables):
    right = jax.jit(apply)(variables, images[held_out]).argmax(-1) == labels[held_out]
    return np.mean([right[labels[held_out] == label].mean() for label in (0, 1)])


def train(variables, steps=100, batch=32):
    moments = optimizer.init(variables)
    for number in range(steps):
        chosen = np.random.default_rng(number).choice(600, batch, replace=False)
        variables, moments, loss = step(variables, moments, images[chosen], labels[chosen])
        if number % 20 == 19:
            print(f"step {number + 1}: loss {loss:.3f}")
    return balanced_accuracy(variables)


print("from its own initialization")
own = train(variables)
print("from the transferred weights")
transferred = train(linen_variables)
print(f"balanced accuracy: own {own:.3f}, transferred {transferred:.3f}")

# %% [markdown]
# That is one seed, and says little. `train.compare` repeats it with seeds and learning rates:
# [the quickstart](https://github.com/tlv-jax/tlv_jax/blob/main/notebooks/quickstart.ipynb) shows
# how.
#
# NNX and Equinox modules are trained as always: what `transfer` returned is one of them.
# [An example](https://github.com/tlv-jax/tlv_jax/blob/main/examples/own_loop.py) adds batch norms,
# and features that the source lends in training.
#
# ## Out to PyTorch
#
# Networks of torchvision go back: `importers.export` makes a state dict, and `write_safetensors`
# writes the same as a file, without torch. Here is a MobileNetV2 that begins with the source's
# weights.

# %%
mobilenet = models.create("mobilenet_v2", num_classes=2)
start = jax.jit(mobilenet.init)(jax.random.key(0), image)
start = tlv_jax.transfer(src, tlv_jax.trace(mobilenet.apply, start, image))
importers.write_safetensors(
    "start.safetensors", "mobilenet_v2", start["params"], start["batch_stats"]
)

weights = importers.read_state_dict("start.safetensors")
print(f"{len(weights)} arrays, such as features.0.0.weight {weights['features.0.0.weight'].shape}")

# %% [markdown]
# In PyTorch, `model.load_state_dict(safetensors.torch.load_file("start.safetensors"))` reads it
# into `torchvision.models.mobilenet_v2(num_classes=2)`.
# [From torchvision](https://github.com/tlv-jax/tlv_jax/blob/main/docs/torchvision.md) has the
# table of counterparts.
