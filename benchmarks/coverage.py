"""What share of a target's convs each matching gives a source, from shapes alone.

    python -m benchmarks.coverage [--models NAME ...]

Over all ordered pairs of the architectures: mean and smallest share, and the pair that has it.
"""

import argparse
import itertools
import statistics

import tlv_jax
from tlv_jax import models
from tlv_jax.standardization import find_layers

MODELS = (
    *("vgg16", "resnet18", "resnet50", "densenet121", "mobilenet_v2", "efficientnet_b0"),
    *("efficientnet_lite0", "squeezenet1_1", "googlenet", "convnext_tiny", "regnet_y_400mf"),
    *("mnasnet1_0", "shufflenet_v2_x1_0"),
)
MATCHINGS = {
    "flat, index": (tlv_jax.standardize_flat, tlv_jax.match_by_index),
    "flat, score": (tlv_jax.standardize_flat, tlv_jax.match_by_score),
    "flat, bipartite": (tlv_jax.standardize_flat, tlv_jax.match_bipartite),
    "blocks, score": (tlv_jax.standardize_blocks, tlv_jax.match_by_score),
    "blocks, coverage (the default)": (tlv_jax.standardize_blocks, tlv_jax.match_by_coverage),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME")
    names = parser.parse_args().models
    layers = {
        name: find_layers(models.abstract_variables(models.create(name))["params"], name=name)[0]
        for name in names
    }
    print("| matching | mean | smallest | of |")
    print("|---|---|---|---|")
    for title, (standardize, match) in MATCHINGS.items():
        blocks = {name: standardize(found, ("conv",)) for name, found in layers.items()}
        shares = {}
        for pair in itertools.permutations(names, 2):
            source, target = pair
            convs = sum(layer.kind == "conv" for layer in layers[target])
            shares[pair] = len(match(blocks[source], blocks[target])) / convs
        worst = min(shares, key=lambda pair: shares[pair])
        mean = statistics.mean(shares.values())
        print(f"| {title} | {mean:.1%} | {shares[worst]:.1%} | {' into '.join(worst)} |")


if __name__ == "__main__":
    main()
