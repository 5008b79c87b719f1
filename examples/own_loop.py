"""Transfer and feature crossover inside a training loop of your own, on all devices at hand.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m examples.own_loop

A MobileNetV2 starts from ImageNet weights of EfficientNet-Lite0, which also lends a tenth of the
penultimate features in training. The images are 2,624 photographs of solar cells (`pip install
elpv-dataset`), functional or defective. Nothing of the package `train` is used.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from elpv_dataset.utils import load_dataset
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import importers
import tlv_jax
from tlv_jax import models

Images = tuple[np.ndarray, np.ndarray]


def photographs(size: int) -> tuple[Images, Images]:
    """Images `[N, 60, 60, 3]` and labels `[N]`; a fifth of both is held out."""
    images, probabilities, _ = load_dataset()
    order = np.random.default_rng(0).permutation(len(images))[:size]
    images = np.repeat(images[order, ::5, ::5, None] / np.float32(127.5) - 1, 3, axis=-1)
    labels, end = (probabilities[order] > 0.5).astype(np.int32), size - size // 5
    return (images[:end], labels[:end]), (images[end:], labels[end:])


def main(steps: int = 150, size: int = 2624, batch: int = 64) -> float:
    """Trains, and returns the accuracy on the photographs that were held out."""
    (images, labels), held_out = photographs(size)

    # The transfer. Any network goes in the place of `model`: trace it, and get new weights.
    source = importers.load("efficientnet_lite0")
    model = models.create("mobilenet_v2", num_classes=2)
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    target = tlv_jax.trace(model.apply, variables, images[:1])
    variables = tlv_jax.transfer(source.network, target, key=jax.random.key(1))

    # Each device has a part of every batch, and a copy of everything else.
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    rows, copies = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    optimizer = optax.adamw(1e-3)
    moments = optimizer.init(variables["params"])
    state = jax.device_put((variables["params"], variables["batch_stats"], moments), copies)
    lender = jax.device_put(source.variables, copies)
    # On a CPU, MobileNets are slow without this.
    apply: Any = tlv_jax.cpu_convolutions(model.apply)
    lend: Any = tlv_jax.cpu_convolutions(source.model.apply)

    @jax.jit
    def step(state: Any, lender: Any, key: jax.Array, images: Any, labels: Any) -> Any:
        params, stats, moments = state
        key, key_dropout = jax.random.split(key)
        lent = lend(lender, images, method="features")
        options = {"train": True, "rngs": {"dropout": key_dropout}}

        def loss_of(params: Any) -> Any:
            variables = {"params": params, "batch_stats": stats}
            features, updated = apply(
                variables, images, method="features", mutable=["batch_stats"], **options
            )
            features = tlv_jax.crossover(key, features, lent, rate=0.1)
            logits = apply(variables, features, method="head", **options)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updated["batch_stats"]

        (loss, stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), stats, moments), loss

    for number in range(steps):
        chosen = np.random.default_rng(number).choice(len(images), batch, replace=False)
        shown = jax.device_put((images[chosen], labels[chosen]), rows)
        state, loss = step(state, lender, jax.random.fold_in(jax.random.key(2), number), *shown)
        if number % 10 == 0:
            print(f"step {number}: loss {loss:.3f}")

    logits = jax.jit(apply)({"params": state[0], "batch_stats": state[1]}, held_out[0])
    accuracy = float(jnp.mean(logits.argmax(-1) == held_out[1]))
    print(f"{accuracy:.1%} of {len(logits)} are right, trained on {jax.device_count()} devices")
    return accuracy


if __name__ == "__main__":
    main()
