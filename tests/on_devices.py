"""One training on some of eight simulated devices; prints what each run gives, in JSON.

Run it as `python tests/on_devices.py FOLDER RUN...`, where a run is a number of devices, `s` if the
state is divided over them, and `<RUN` if it goes on from the first epoch of another: `2s<8s`.
"""

import os
import sys

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import Progress
from small_network import Net

from train import checkpoints
from train.config import Config, RecipeOptions
from train.data import LabelledImages, Splits
from train.devices import Devices, place_images, shardings_of
from train.interruptions import Watch
from train.lending import Lending
from train.linen_target import linen_target
from train.networks import keys_of
from train.optimizer import make_optimizer
from train.recipe import recipe_of
from train.setup import Setup
from train.step import Task, initial_state, make_eval_step
from train.support import Lent, Support
from train.tracking import Tracker
from train.training import train

SIDE, IMAGES = 8, (101, 20, 20)
KEYS = keys_of(0)


def devices_of(run):
    used = jax.devices()[: int(run[0])]
    mesh = jax.make_mesh((len(used),), ("data",), axis_types=(AxisType.Auto,), devices=used)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    replicated = NamedSharding(mesh, PartitionSpec())
    return Devices(replicated, rows, jnp.dtype("float32"), shard_params=run.endswith("s"))


def random_images(count):
    generator = np.random.default_rng(count)
    pixels = generator.integers(0, 256, (count, SIDE, SIDE, 3)).astype(np.uint8)
    return LabelledImages(pixels, (np.arange(count) % 2).astype(np.int32))


def set_up(run, epochs, resume):
    recipe = RecipeOptions(ema=0.9)
    config = Config(
        batch_size=16, image_size=SIDE, epochs=epochs, resume=resume, recipe=recipe, seed=0
    )
    devices, recipe = devices_of(run), recipe_of(config)
    target = linen_target(Net(width=512), KEYS.init, jnp.zeros((1, SIDE, SIDE, 3)))
    task = Task(target, (0.5,) * 3, (0.25,) * 3, devices.dtype, gathered=devices.gathered)
    parts = [place_images(random_images(count), devices) for count in IMAGES]
    return Setup(
        config=config,
        devices=devices,
        task=task,
        recipe=recipe,
        steps=12,
        splits=Splits(*parts, classes=("a", "b"), listing={}),
        optimizer=make_optimizer(1e-4, 5e-4, 12, recipe),
        adapter_optimizer=make_optimizer(1e-4, 5e-4, 12, recipe),
        evaluate=jax.jit(make_eval_step(task)),
        order_key=KEYS.order,
        step_key=KEYS.step,
    )


def train_on(run, folder, epochs, resume=False):
    """Trains with features of another network; returns all measured and the last state."""
    setup = set_up(run, epochs, resume)
    lender = Net(width=5)
    lent = lender.init(KEYS.transfer, jnp.zeros((1, SIDE, SIDE, 3)))
    variables = setup.task.target.network.params
    start = setup.task.target.split(variables)
    bar = Progress(console=Console(quiet=True), disable=True)
    lending = Lending(Support(lender, 0.3), Lent(lent), None)
    arguments = lending, folder, Watch(), bar, Tracker()
    result = train("he", setup, start, *arguments)
    state = jax.eval_shape(
        lambda *start: initial_state(*start, setup.optimizer, setup.recipe), *start
    )
    like = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        shardings_of(state, setup.devices),
    )
    with checkpoints.open_checkpoints(
        folder / "checkpoints" / "he", "balanced_accuracy"
    ) as manager:
        state, _ = checkpoints.restore(manager, like)
    measured = [value for record in result.epochs for _, value in sorted(record.items())]
    return {"measured": [*measured, *result.test], "shards": shards_of(state)}


def shards_of(state):
    """Of each array its shape, its number of shards, and the share of it that each holds."""
    return {
        jax.tree_util.keystr(path): [
            leaf.shape,
            len(leaf.addressable_shards),
            leaf.addressable_shards[0].data.size / leaf.size,
        ]
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def main(folder, *runs):
    results = {}
    for run in runs:
        now, _, before = run.partition("<")
        if before:
            begun = folder / f"begun-{before}"
            if not begun.exists():
                train_on(before, begun, epochs=1)
            shutil.copytree(begun, folder / run)
        results[run] = train_on(now, folder / run, epochs=2, resume=bool(before))
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
