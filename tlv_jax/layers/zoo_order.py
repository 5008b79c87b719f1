"""The order of execution of the project's own architectures, by names alone.

A bare tree does not keep this order: JAX sorts the keys of a dict. For the networks of
`tlv_jax.models` it follows from the rank of each module among its siblings. Any other tree gets the
natural order of its paths. `tlv_jax.trace` is exact.
"""

import functools
import re
from collections.abc import Collection

from tlv_jax.layers.paths import natural_key, path_components

# For each family a name that all its trees have, and all names of its modules, in an order that is
# right among any siblings. List indices are left out, and numbers at the end: `denselayer` stands
# for `denselayer12`.
ORDERS = {
    "squeezenet": ("squeeze", "features squeeze expand1x1 expand3x3 classifier"),
    "mobilenet_v2": ("conv", "features conv classifier"),
    "vit": (
        "conv_proj",
        "conv_proj encoder layers encoder_layer_ ln_1 self_attention in_proj out_proj ln_2 "
        "mlp ln heads head",
    ),
    "swin": ("reduction", "features norm1 attn qkv proj norm2 mlp norm reduction head"),
    "swin_v2": (
        "cpb_mlp",
        "features attn cpb_mlp qkv proj norm1 mlp norm2 reduction norm head",
    ),
    "maxvit": (
        "MBconv",
        "stem blocks MBconv proj layers pre_norm conv_a conv_b squeeze_excitation fc1 fc2 "
        "conv_c window_attention grid_attention attn_layer to_qkv merge mlp_layer classifier",
    ),
    "googlenet": (
        "inception3a",
        "conv1 conv2 conv3 inception3a inception3b inception4a inception4b inception4c "
        "inception4d inception4e inception5a inception5b aux1 aux2 branch1 branch2 branch3 "
        "branch4 conv bn fc1 fc2 fc",
    ),
    "inception_v3": (
        "Mixed_5b",
        "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 Conv2d_3b_1x1 Conv2d_4a_3x3 Mixed_5b "
        "Mixed_5c Mixed_5d Mixed_6a Mixed_6b Mixed_6c Mixed_6d Mixed_6e Mixed_7a Mixed_7b "
        "Mixed_7c AuxLogits branch1x1 branch3x3 branch3x3_ branch3x3_2a branch3x3_2b "
        "branch5x5_ branch3x3dbl_ branch3x3dbl_3a branch3x3dbl_3b branch7x7_ branch7x7dbl_ "
        "branch7x7x3_ branch_pool conv0 conv1 conv bn fc",
    ),
    "efficientnet, mobilenet_v3 and convnext": ("block", "features block fc1 fc2 classifier"),
    "densenet": (
        "conv0",
        "features conv0 norm0 denseblock1 transition1 denseblock2 transition2 denseblock3 "
        "transition3 denseblock4 norm5 denselayer norm1 conv1 norm2 conv2 norm conv "
        "classifier",
    ),
    "mnasnet": ("layers", "layers classifier"),
    "regnet": ("trunk_output", "stem trunk_output block f proj a b se c fc1 fc2 fc"),
    "shufflenet_v2": ("stage2", "conv1 stage2 stage3 stage4 branch1 branch2 conv5 fc"),
    "vgg and alexnet": ("features", "features classifier"),
    "resnet": (
        "layer1",
        "conv1 bn1 layer1 layer2 layer3 layer4 conv2 bn2 conv3 bn3 downsample fc",
    ),
    "efficientnet_lite": (
        "_blocks",
        "_conv_stem _expand_conv _bn0 _blocks _depthwise_conv _conv_head _bn1 _project_conv "
        "_bn2 _fc",
    ),
}


def sort_modules(modules: Collection[str]) -> tuple[list[str], str | None]:
    """Sorts module paths by execution where the architecture is known, else naturally.

    Args:
      modules: paths such as `layer1.0/conv1`, without a leading collection's name.

    Returns:
      The sorted paths, and the family whose order they have; None if no family fits.
    """
    words = {word for module in modules for word in path_components(module) if not word.isdigit()}
    for family, (marker, names) in ORDERS.items():
        known = tuple(names.split())
        if marker in words and all(_known(word, known) for word in words):
            return sorted(modules, key=functools.partial(_rank, names=known)), family
    return sorted(modules, key=natural_key), None


def _rank(module: str, names: tuple[str, ...]) -> list[tuple[int, ...]]:
    """Sorts among siblings, which are all numbers or all names."""
    return [_rank_of_word(word, names) for word in path_components(module)]


def _rank_of_word(word: str, names: tuple[str, ...]) -> tuple[int, ...]:
    if word.isdigit():
        return (int(word),)
    if word in names:
        return (names.index(word),)
    name, numbers = _split_number(word)
    return (names.index(name), *numbers)


def _known(word: str, names: tuple[str, ...]) -> bool:
    return word in names or _split_number(word)[0] in names


def _split_number(word: str) -> tuple[str, tuple[int, ...]]:
    """`block3-11 -> block, (3, 11)`."""
    name = word.rstrip("0123456789-")
    return name, tuple(int(number) for number in re.findall(r"\d+", word[len(name) :]))
