"""Records the keys and logits of other projects' networks; needs timm and transformers.

`PYTHONPATH=. python tests/foreign.py` writes tests/golden/foreign.json.gz, last with timm 1.0.31
and transformers 5.24.0. Weights follow from their keys, so the file holds none.
"""

import functools
import gzip
import json
import re
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch
from helpers import import_torchvision
from parity import random_images, to_torch

GOLDEN = Path(__file__).parent / "golden" / "foreign.json.gz"
CLASSES = 5

TIMM = {  # torchvision's name, timm's, pixels a side, options
    "convnext_tiny": ("convnext_tiny", 64, {}),
    "mobilenet_v2": ("mobilenetv2_100", 64, {}),
    "regnet_x_400mf": ("regnetx_004_tv", 64, {}),
    "regnet_y_400mf": ("regnety_004", 64, {}),
    "swin_t": ("swin_tiny_patch4_window7_224", 224, {}),
    "vgg11_bn": ("vgg11_bn", 64, {}),
    "vit_b_16": ("vit_base_patch16_224", 64, {"img_size": 64}),
}
AUTHORS = {  # timm's network under the keys of its authors, as timm's `checkpoint_filter_fn` has it
    "convnext_tiny": (
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"\.blocks\.", "."),
        (r"\.conv_dw\.", ".dwconv."),
        (r"\.mlp\.fc", ".pwconv"),
        (r"^head\.norm\.", "norm."),
        (r"^head\.fc\.", "head."),
    ),
    "swin_t": (
        (r"^layers\.(\d)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample."),
        (r"^head\.fc\.", "head."),
    ),
}
NOT_READ = {
    "efficientnet_b0": "efficientnet_b0",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "swin_v2_t": "swinv2_tiny_window8_256",
}


def recorded():
    return json.loads(gzip.decompress(GOLDEN.read_bytes()))


def weights_of(shapes):
    """Arrays by key that follow from the key, none of them trivial."""
    return {key: _weight(key, tuple(shape)) for key, shape in shapes.items()}


def _weight(key, shape):
    generator = np.random.default_rng(zlib.crc32(key.encode()))
    if len(shape) == 1 and not key.endswith((".bias", ".running_mean")):
        return generator.uniform(0.5, 1.5, shape).astype(np.float32)
    fan_in = 9 if len(shape) in (1, 3) else np.prod(shape[1:])
    return (generator.standard_normal(shape, np.float32) / np.sqrt(fan_in)).astype(np.float32)


def _shapes(state_dict):
    return {
        key: list(tensor.shape)
        for key, tensor in state_dict.items()
        if not key.endswith("num_batches_tracked")
    }


def _timm(architecture, rules=()):
    import timm

    name, side, options = TIMM[architecture]
    network = timm.create_model(name, num_classes=CLASSES, **options)
    shapes, keys = {}, {}
    for key, shape in _shapes(network.state_dict()).items():
        keys[key] = functools.reduce(lambda k, rule: re.sub(*rule, k), rules, key)
        shapes[keys[key]] = shape
    weights = weights_of(shapes)
    state = {key: torch.from_numpy(weights[keys[key]]) for key in keys}
    network.load_state_dict(state, strict=False)  # without the counters
    return _record(architecture, shapes, network, side)


def _hugging_face(architecture, network, side):
    """Through a file: its keys are not those in memory."""
    from safetensors.numpy import load_file, save_file

    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        shapes = _shapes(load_file(Path(folder, "model.safetensors")))
        save_file(weights_of(shapes), Path(folder, "model.safetensors"), {"format": "pt"})
        network = type(network).from_pretrained(folder)
    record = _record(architecture, shapes, network, side)
    return record | {"in_memory": _shapes(network.state_dict())}


def _record(architecture, shapes, network, side):
    with torch.no_grad():
        logits = network.eval()(to_torch(random_images(2, side, side, 3)))
    logits = getattr(logits, "logits", logits)
    return {
        "architecture": architecture,
        "side": side,
        "shapes": shapes,
        "logits": logits.numpy().tolist(),
    }


def _hugging_face_networks():
    import transformers as hf

    labels = {"num_labels": CLASSES}
    basic = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}
    vit, convnext = hf.ViTConfig(image_size=64, **labels), hf.ConvNextConfig(**labels)
    yield "resnet18", hf.ResNetForImageClassification(hf.ResNetConfig(**basic, **labels)), 64
    yield "resnet50", hf.ResNetForImageClassification(hf.ResNetConfig(**labels)), 64
    yield "vit_b_16", hf.ViTForImageClassification(vit), 64
    yield "convnext_tiny", hf.ConvNextForImageClassification(convnext), 64


def main():
    import_torchvision()
    import timm
    import transformers as hf

    golden = {f"timm {name}": _timm(name) for name in TIMM}
    golden |= {f"authors {name}": _timm(name, rules) for name, rules in AUTHORS.items()}
    for name, network, side in _hugging_face_networks():
        golden[f"transformers {name}"] = _hugging_face(name, network, side)
    for name, foreign in NOT_READ.items():
        shapes = _shapes(timm.create_model(foreign, num_classes=CLASSES).state_dict())
        golden[f"unread timm {name}"] = {"architecture": name, "shapes": shapes}
    swin = hf.SwinForImageClassification(hf.SwinConfig(num_labels=CLASSES))
    shapes = _shapes(swin.state_dict())
    golden["unread transformers swin_t"] = {"architecture": "swin_t", "shapes": shapes}
    GOLDEN.write_bytes(gzip.compress(json.dumps(golden).encode(), mtime=0))
    print(f"{GOLDEN}: {len(golden)} networks, timm {timm.__version__}, {hf.__version__}")


if __name__ == "__main__":
    main()
