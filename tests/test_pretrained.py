"""Real weights recognise real photographs, without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CLASSIFY = """
import json, sys
import jax
import skimage.data
import importers

pretrained = importers.load(sys.argv[1])
pictures = {name: getattr(skimage.data, name)() for name in ("chelsea", "coffee", "rocket")}
images = pretrained.preprocess(list(pictures.values()))
logits = jax.jit(pretrained.model.apply)(pretrained.variables, images)
best = logits.argsort(-1)[:, :-4:-1]
names = [[pretrained.categories[index] for index in row] for row in best]
assert not {"torch", "torchvision"} & set(sys.modules), "torch was imported"
print(json.dumps(dict(zip(pictures, names))))
"""


@pytest.mark.parametrize(
    "name",
    [
        "efficientnet_lite0",
        pytest.param("efficientnet_lite1", marks=pytest.mark.slow),
        pytest.param("efficientnet_lite2", marks=pytest.mark.slow),
    ],
)
def test_recognises_photographs_without_torch(name):
    # A process of its own: this one has torch from the tests of parity.
    done = subprocess.run(
        [sys.executable, "-c", CLASSIFY, name],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["chelsea"][0] in ("tabby", "tiger cat", "Egyptian cat")
    assert seen["coffee"][0] == "espresso"
    # No class of ImageNet is a rocket on its launch pad: the best three include what comes nearest.
    assert {"missile", "projectile", "space shuttle"} & set(seen["rocket"])
