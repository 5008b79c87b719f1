"""What share of a target's convs each matching gives a source, from shapes alone.

    python -m benchmarks.coverage [--models NAME ...]

Over all ordered pairs of the architectures: mean and smallest share, and the pair that has it.
"""

import argparse
import itertools
import statistics

import jax
import jax.numpy as jnp

import tlv_jax
from tlv_jax import layers, matching, models

MODELS = (
    *("vgg16", "resnet18", "resnet50", "densenet121", "mobilenet_v2", "efficientnet_b0"),
    *("efficientnet_lite0", "squeezenet1_1", "googlenet", "convnext_tiny", "regnet_y_400mf"),
    *("mnasnet1_0", "shufflenet_v2_x1_0"),
)
MATCHINGS = {
    "flat, index": (layers.standardize_flat, matching.ByIndex()),
    "flat, score": (layers.standardize_flat, matching.ByScore()),
    "flat, bipartite": (layers.standardize_flat, matching.Bipartite()),
    "blocks, score": (layers.standardize_blocks, matching.ByScore()),
    "blocks, coverage": (layers.standardize_blocks, matching.ByCoverage()),
    "graph, score": (layers.standardize_graph, matching.ByScore()),
    "graph, coverage": (layers.standardize_graph, matching.ByCoverage()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME")
    names = parser.parse_args().models
    networks = {name: traced(name).layers for name in names}
    print("| matching | mean | smallest | of |")
    print("|---|---|---|---|")
    for title, (standardize, match) in MATCHINGS.items():
        blocks = {name: standardize(found, ("conv",)) for name, found in networks.items()}
        shares = {}
        for pair in itertools.permutations(names, 2):
            source, target = pair
            convs = sum(layer.kind == "conv" for layer in networks[target])
            shares[pair] = len(match(blocks[source], blocks[target])) / convs
        worst = min(shares, key=lambda pair: shares[pair])
        mean = statistics.mean(shares.values())
        print(f"| {title} | {mean:.1%} | {shares[worst]:.1%} | {' into '.join(worst)} |")


def traced(name: str) -> tlv_jax.Network:
    """The shapes of an architecture."""
    model = models.create(name)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    return tlv_jax.trace(model.apply, models.abstract_variables(model), images)


if __name__ == "__main__":
    main()
