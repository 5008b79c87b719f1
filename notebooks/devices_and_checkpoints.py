# %% [markdown]
# # Devices and checkpoints
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tlv-jax/tlv_jax/blob/main/notebooks/devices_and_checkpoints.ipynb)
#
# A transfer onto several devices, training on all of them, checkpoints, and a run that is killed
# and goes on. The same cells run on a TPU, on GPUs and on a CPU.

# %%
import importlib.util

# Colab's own JAX stays as it is.
if importlib.util.find_spec("tlv_jax") is None:
    # %pip install -q "tlv-jax[demo] @ git+https://github.com/tlv-jax/tlv_jax"
    importlib.invalidate_caches()

# %% [markdown]
# JAX reads this variable when it starts. It divides a CPU into eight devices, which share its
# cores. They show what a program does on eight devices, not how fast. A TPU or GPUs are used as
# they are.

# %%
import os

os.environ["JAX_NUM_CPU_DEVICES"] = "8"

# %%
import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from elpv_dataset.utils import load_dataset
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image
from rich.console import Console

import importers
import tlv_jax
import train

devices = jax.device_count()
print(f"{devices} x {jax.devices()[0].platform}")

# %% [markdown]
# ## A transfer onto several devices
#
# The target's parameters are divided: each device keeps a part of every kernel's outputs.

# %%
source = importers.load("efficientnet_lite0")


class Block(nn.Module):
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


class Net(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.GroupNorm(8)(nn.Conv(32, (3, 3), 2, use_bias=False)(images)))
        for width, stride in ((24, 2), (24, 1), (40, 2), (40, 1), (112, 2), (112, 1)):
            x = Block(width, stride)(x)
        return nn.Dense(2)(x.mean((1, 2)))


model, image = Net(), jnp.zeros((1, 64, 64, 3))
variables = jax.jit(model.init)(jax.random.key(0), image)
target = tlv_jax.trace(model.apply, variables, image)
plan = tlv_jax.plan_transfer(source.network, target)

mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))


def outputs_divided(array):
    divides = array.ndim and array.shape[-1] % devices == 0
    axes = (*[None] * (array.ndim - 1), "data") if divides else ()
    return NamedSharding(mesh, PartitionSpec(*axes))


shardings = jax.tree.map(outputs_divided, variables)
variables = jax.device_put(variables, shardings)

# %% [markdown]
# The transfer runs as one compiled program, and its result stays divided. A plan is hashable, so
# the function may close over it.


# %%
@jax.jit
def transfer(key, source_variables, variables):
    new = tlv_jax.apply_transfer(plan, key, source_variables, variables)
    return jax.lax.with_sharding_constraint(new, shardings)


new = transfer(jax.random.key(1), source.variables, variables)
kernel = new["params"]["Block_1"]["Conv_0"]["kernel"]
print(f"a kernel of shape {kernel.shape}: {kernel.addressable_shards[0].data.shape} on each device")

alone = tlv_jax.apply_transfer(plan, jax.random.key(1), source.variables, jax.device_get(variables))
same = all(
    np.allclose(divided, whole, rtol=1e-4, atol=1e-6)
    for divided, whole in zip(jax.tree.leaves(new), jax.tree.leaves(alone), strict=True)
)
print(f"within rounding the same as on one device: {same}")

# %% [markdown]
# ## Training on all devices
#
# Each device gets a part of every batch, and keeps a copy of the parameters. `jit` does the rest:
# it sees how the arguments lie. The photographs are of solar cells, functional or defective.

# %%
pixels, defects, _ = load_dataset()
order = np.random.default_rng(0).permutation(len(pixels))[:512]
preprocess = dataclasses.replace(source.preprocess, resize=64, crop=64)
images = preprocess([Image.fromarray(pixels[number]) for number in order])
labels = (defects[order] > 0.5).astype(int)

rows, copies = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
apply = tlv_jax.cpu_convolutions(model.apply)  # makes depthwise convolutions fast on a CPU
optimizer = optax.adamw(1e-3)


@jax.jit
def step(state, images, labels):
    def loss_of(variables):
        logits = apply(variables, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    variables, moments, number = state
    loss, gradients = jax.value_and_grad(loss_of)(variables)
    updates, moments = optimizer.update(gradients, moments, variables)
    return (optax.apply_updates(variables, updates), moments, number + 1), loss


def train_until(state, last, sharding, batch=64):
    for number in range(int(state[2]), last):  # the number of the step chooses its images
        chosen = np.random.default_rng(number).choice(len(images), batch, replace=False)
        shown = jax.device_put((images[chosen], labels[chosen]), sharding)
        state, loss = step(state, *shown)
    print(f"step {last}: loss {loss:.4f}")
    return state


state = jax.device_put((new, optimizer.init(new), jnp.zeros((), int)), copies)
state = train_until(state, 10, rows)

# %% [markdown]
# ## Checkpoints with Orbax
#
# A checkpoint holds arrays, not how they lie. It is restored onto the devices that are there: here
# onto one, as if the others were lost. Within rounding the next steps are those of the run that
# went on.

# %%
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(Path("checkpoint").absolute(), state)

went_on = train_until(state, 20, rows)

one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
wanted = jax.tree.map(
    lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=one), state
)
with ocp.StandardCheckpointer() as checkpointer:
    restored = checkpointer.restore(Path("checkpoint").absolute(), wanted)
print(f"restored at step {int(restored[2])}, on {len(restored[2].devices())} device")
restored = train_until(restored, 20, one)

# %% [markdown]
# ## A run that is killed
#
# `train.run` does all of this by itself: it transfers, trains on all devices, saves while it
# trains, and resumes. Here it is started in a process of its own, on a CPU since a TPU serves one
# process only, and killed as by a loss of power.

# %%
config = train.Config(
    target="mobilenet_v2",
    dataset="elpv",
    train_images=256,
    image_size=48,
    epochs=2,
    batch_size=32,
    crossover_rate=0.0,
    baseline=False,
    precision="float32",
    save_every_steps=2,
    out=Path("runs"),
    name="cells",
)
command = [
    *(sys.executable, "-m", "train", "--target", "mobilenet_v2", "--dataset", "elpv"),
    *("--train-images", "256", "--image-size", "48", "--epochs", "2", "--batch-size", "32"),
    *("--crossover-rate", "0", "--no-baseline", "--precision", "float32"),
    *("--save-every-steps", "2", "--out", "runs", "--name", "cells"),
]
checkpoints = Path("runs/cells/checkpoints/transferred")

with Path("log.txt").open("w") as log:
    process = subprocess.Popen(
        command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, stdout=log, stderr=log
    )
    while process.poll() is None and not (checkpoints / "2").exists():
        time.sleep(0.1)
    process.kill()
    process.wait()
assert process.returncode == -signal.SIGKILL, Path("log.txt").read_text()
print(f"killed: {signal.Signals(-process.returncode).name}")
print(f"finished: {Path('runs/cells/results.json').exists()}")

# %% [markdown]
# The same settings with `resume=True` go on from the last checkpoint, on the devices of this
# notebook.

# %%
result = train.run(dataclasses.replace(config, resume=True), console=Console(quiet=True))

for line in (result.folder / "transferred" / "metrics.jsonl").read_text().splitlines():
    record = json.loads(line)
    print(f"epoch {record['epoch']}: loss {record['train_loss']:.3f}")
print(f"finished: {(result.folder / 'results.json').exists()}")

# %% [markdown]
# On a CPU with the same number of devices, the result is that of a run that was never killed, to
# the last bit.
#
# - [Interruptions](https://github.com/tlv-jax/tlv_jax/blob/main/docs/interruptions.md): when a run
#   saves, what signals do, and what is refused.
# - [Several devices and hosts](https://github.com/tlv-jax/tlv_jax/blob/main/docs/tpu.md):
#   `shard_params`, slices of TPUs, Slurm.
