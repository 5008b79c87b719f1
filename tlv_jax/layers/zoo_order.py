"""The order of execution of the project's own architectures, by names alone.

A bare tree does not keep this order: JAX sorts the keys of a dict. For the networks of
`tlv_jax.models` it follows from the rank of each module among its siblings. `tlv_jax.trace` is
exact for any network.
"""

import re
from collections.abc import Collection, Sequence

from tlv_jax.layers.paths import path_components

# For each family all names of its modules, in an order that is right among any siblings. Numbers at
# the end are left out: `denselayer` stands for `denselayer12`. A star marks a name that every tree
# of the family has. The first family that fits is taken.
FAMILIES = """
squeezenet: features *squeeze expand1x1 expand3x3 classifier
mobilenet_v2: features *conv classifier
vit: *conv_proj encoder layers encoder_layer_ ln_1 self_attention in_proj out_proj ln_2 mlp ln
     heads head
swin: features norm1 attn qkv proj norm2 mlp norm *reduction head
swin_v2: features attn *cpb_mlp qkv proj norm1 mlp norm2 reduction norm head
maxvit: stem blocks *MBconv proj layers pre_norm conv_a conv_b squeeze_excitation fc1 fc2 conv_c
     window_attention grid_attention attn_layer to_qkv merge mlp_layer classifier
googlenet: conv1 conv2 conv3 *inception3a inception3b inception4a inception4b inception4c
     inception4d inception4e inception5a inception5b aux1 aux2 branch1 branch2 branch3 branch4 conv
     bn fc1 fc2 fc
inception_v3: Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 Conv2d_3b_1x1 Conv2d_4a_3x3 *Mixed_5b
     Mixed_5c Mixed_5d Mixed_6a Mixed_6b Mixed_6c Mixed_6d Mixed_6e Mixed_7a Mixed_7b Mixed_7c
     AuxLogits branch1x1 branch3x3 branch3x3_ branch3x3_2a branch3x3_2b branch5x5_ branch3x3dbl_
     branch3x3dbl_3a branch3x3dbl_3b branch7x7_ branch7x7dbl_ branch7x7x3_ branch_pool conv0 conv1
     conv bn fc
efficientnet, mobilenet_v3 and convnext: features *block fc1 fc2 classifier
densenet: features *conv0 norm0 denseblock1 transition1 denseblock2 transition2 denseblock3
     transition3 denseblock4 norm5 denselayer norm1 conv1 norm2 conv2 norm conv classifier
mnasnet: *layers classifier
regnet: stem *trunk_output block f proj a b se c fc1 fc2 fc
shufflenet_v2: conv1 *stage2 stage3 stage4 branch1 branch2 conv5 fc
vgg and alexnet: *features classifier
resnet: conv1 bn1 *layer1 layer2 layer3 layer4 conv2 bn2 conv3 bn3 downsample fc
efficientnet_lite: _conv_stem _expand_conv _bn0 *_blocks _depthwise_conv _conv_head _bn1
     _project_conv _bn2 _fc
"""
ORDERS = dict(line.split(": ") for line in re.sub(r"\n +", " ", FAMILIES).strip().splitlines())


def sort_modules(modules: Collection[str]) -> tuple[list[str], str | None]:
    """Sorts module paths by execution where the architecture is known.

    Args:
      modules: paths such as `layer1.0/conv1`, without a leading collection's name.

    Returns:
      The paths, sorted, and the family whose order they have; as they came and None if no family
      fits.
    """
    paths = {module: path_components(module) for module in modules}
    words = {word for path in paths.values() for word in path}
    for family, starred in ORDERS.items():
        markers, names = re.findall(r"\*(\S+)", starred), starred.replace("*", "").split()
        ranks = {word: _rank(word, names) for word in words}
        if words.issuperset(markers) and None not in ranks.values():
            order = sorted(paths, key=lambda module: [ranks[word] for word in paths[module]])
            return order, family
    return list(modules), None


def _rank(word: str, names: Sequence[str]) -> tuple[int, ...] | None:
    """The rank of a module among its siblings: `block3-11 -> (rank of block, 3, 11)`."""
    name = word if word in names else word.rstrip("0123456789-")
    numbers = (int(number) for number in re.findall(r"\d+", word[len(name) :]))
    if not name:  # the index of a list, all of whose entries are siblings
        return tuple(numbers)
    return (names.index(name), *numbers) if name in names else None
