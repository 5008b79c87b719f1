"""What a small run reads: photographs of two classes, and weights of the smallest source."""

import numpy as np
import trees
from PIL import Image

import importers


def save_photographs(folder, side=32, contrast=100):
    """Writes noise around two colours, 20 pictures in `dark` and 20 in `light`."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            pixels = generator.integers(0, 128, (side, side, 3)) + contrast * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


def save_source(path, seed=0):
    """Writes weights of a SqueezeNet, drawn at random."""
    variables = trees.random_variables(trees.shapes("squeezenet1_1"), seed)
    importers.write_safetensors(path, "squeezenet1_1", variables["params"], {})
    return path


def save_inputs(folder):
    """Writes both, as `pictures` and `source.safetensors`."""
    save_photographs(folder / "pictures")
    save_source(folder / "source.safetensors")
    return folder


def settings_of(photographs, weights):
    """What the settings of small runs and comparisons of these inputs share."""
    return {
        "source": "squeezenet1_1",
        "source_weights": weights,
        "target": "small_network:Net",
        "dataset": "folder",
        "data_dir": photographs,
        "image_size": 32,
    }
