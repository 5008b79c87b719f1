"""A small member of each family, with ten classes.

Every kind of block is there, but few of each and with few channels, so that they compile in a
fraction of a published network's time. Families whose sizes are fixed go without some blocks.
"""

import dataclasses

import pytest

from tlv_jax import models
from tlv_jax.models import (
    convnext,
    densenet,
    efficientnet,
    googlenet,
    inception_v3,
    maxvit,
    mobilenet_v2,
    mobilenet_v3,
    regnet,
    resnet,
    shufflenet_v2,
    swin,
    vit,
)

# Blocks that leave the channels as they are, without which the rest fits together.
GOOGLENET_OMITS = ("inception4b", "inception4c", "inception5a")
INCEPTION_OMITS = ("Mixed_5d", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_7c")
MOBILENET_V3_OMITS = (5, 7, 10)
EFFICIENTNET_REPEATS = {
    "efficientnet_b0": (1, 2, 1, 1, 1, 1, 1),
    "efficientnet_v2_s": (2, 2, 1, 2, 1, 1),
}


def _efficientnet(name):
    config = efficientnet.VARIANTS[name]
    blocks = (block for _, block in config.stages)
    stages = zip(EFFICIENTNET_REPEATS[name], blocks, strict=True)
    return models.EfficientNet(dataclasses.replace(config, stages=tuple(stages)), num_classes=10)


def _googlenet():
    config = googlenet.VARIANTS["googlenet"]
    stages = tuple(
        tuple((name, block) for name, block in stage if name not in GOOGLENET_OMITS)
        for stage in config.stages
    )
    return models.GoogLeNet(dataclasses.replace(config, stages=stages), num_classes=10)


def _inception():
    config = inception_v3.VARIANTS["inception_v3"]
    blocks = tuple((name, block) for name, block in config.blocks if name not in INCEPTION_OMITS)
    return models.InceptionV3(dataclasses.replace(config, blocks=blocks), num_classes=10)


def _mobilenet_v3():
    config = mobilenet_v3.VARIANTS["mobilenet_v3_small"]
    blocks = tuple(
        block for number, block in enumerate(config.blocks) if number not in MOBILENET_V3_OMITS
    )
    return models.MobileNetV3(dataclasses.replace(config, blocks=blocks), num_classes=10)


def _regnet(excite):
    # The first stage is narrower than a group, and then is one.
    config = regnet.RegNetConfig((1, 2, 1, 1), (16, 48, 48, 72), 24, excite=excite)
    return models.RegNet(config, num_classes=10)


def _swin(second):
    config = swin.SwinConfig(16, (2, 2), (2, 4), stochastic_depth=0.2, window=4, second=second)
    return models.Swin(config, num_classes=10)


SMALL_MODELS = {
    "alexnet": models.create("alexnet", num_classes=10),
    "convnext_tiny": models.ConvNeXt(
        convnext.ConvNeXtConfig((1, 1, 2, 1), (16, 24, 32, 48), stochastic_depth=0.1),
        num_classes=10,
    ),
    "densenet121": models.DenseNet(
        densenet.DenseNetConfig((1, 2, 1, 2), growth=8, stem_width=16), num_classes=10
    ),
    "efficientnet_b0": _efficientnet("efficientnet_b0"),
    "efficientnet_v2_s": _efficientnet("efficientnet_v2_s"),
    "efficientnet_lite0": models.create("efficientnet_lite0", num_classes=10),
    "googlenet": _googlenet(),
    "inception_v3": _inception(),
    "maxvit_t": models.MaxViT(
        maxvit.MaxViTConfig(8, (16, 24), (1, 2), 0.2, head_width=8, partition=3),
        num_classes=10,
        image_size=24,
    ),
    "mnasnet0_5": models.create("mnasnet0_5", num_classes=10),
    "mobilenet_v2": models.MobileNetV2(
        mobilenet_v2.MobileNetV2Config(
            (
                mobilenet_v2.StageConfig(1, 16, repeats=1, stride=1),
                mobilenet_v2.StageConfig(6, 24, repeats=2, stride=2),
                mobilenet_v2.StageConfig(6, 32, repeats=2, stride=2),
                mobilenet_v2.StageConfig(6, 48, repeats=1, stride=2),
            )
        ),
        num_classes=10,
    ),
    "mobilenet_v3_small": _mobilenet_v3(),
    "regnet_x_400mf": _regnet(excite=False),
    "regnet_y_400mf": _regnet(excite=True),
    "resnet18": models.ResNet(resnet.ResNetConfig((1, 2, 1, 1), bottleneck=False), num_classes=10),
    "resnext50_32x4d": models.ResNet(
        resnet.ResNetConfig((1, 2, 1, 1), groups=32, group_width=4), num_classes=10
    ),
    "shufflenet_v2_x0_5": models.ShuffleNetV2(
        shufflenet_v2.ShuffleNetV2Config((24, 32, 48), head_width=64, depths=(1, 2, 2)),
        num_classes=10,
    ),
    "squeezenet1_1": models.create("squeezenet1_1", num_classes=10),
    "swin_t": _swin(second=False),
    "swin_v2_t": _swin(second=True),
    "vgg11_bn": models.create("vgg11_bn", num_classes=10),
    "vit_b_32": models.ViT(vit.ViTConfig(8, 2, 4, 32, 48), num_classes=10, image_size=32),
}
"""By the name of a published member, whose rules of conversion they share."""

# Of these a test takes seconds. What they are built of is in smaller ones too, but for Inception,
# GoogLeNet and MaxViT, whose published members `make parity` compares.
LARGER = (
    *("efficientnet_v2_s", "googlenet", "inception_v3", "maxvit_t", "mnasnet0_5"),
    *("regnet_x_400mf", "swin_v2_t", "vgg11_bn"),
)
IN_TESTS = [
    pytest.param(name, marks=pytest.mark.slow if name in LARGER else ()) for name in SMALL_MODELS
]
