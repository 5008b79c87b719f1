"""The README's code runs as it stands, on small networks of each library."""

import re
import textwrap
from pathlib import Path

import equinox as eqx
import flax
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from skimage import data

import importers
from docs.first_picture import save_first_picture

# Three convs are not like EfficientNet-Lite0, as a reader would be told too.
pytestmark = pytest.mark.filterwarnings("ignore::tlv_jax.SimilarityWarning")

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = [
    (heading, textwrap.dedent(block))
    for heading, block in re.findall(r"^([^\n]*)\n\n?```python\n(.*?)^```", README, re.M | re.S)
]
KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(24, (3, 3), strides=2, name="stem")(images))
        x = nn.relu(nn.Conv(40, (1, 1), name="body")(x))
        return nn.Dense(4, name="head")(x.mean((1, 2)))


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 24, (3, 3), strides=2, rngs=rngs)
        self.body = nnx.Conv(24, 40, (1, 1), rngs=rngs)
        self.head = nnx.Linear(40, 4, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.body(nnx.relu(self.stem(images))))
        return self.head(x.mean((1, 2)))


class Equinox(eqx.Module):
    stem: eqx.nn.Conv2d
    body: eqx.nn.Conv2d
    head: eqx.nn.Linear

    def __init__(self, key):
        self.stem = eqx.nn.Conv2d(3, 24, 3, stride=2, key=key)
        self.body = eqx.nn.Conv2d(24, 40, 1, key=key)
        self.head = eqx.nn.Linear(40, 4, key=key)

    def __call__(self, image):
        x = jax.nn.relu(self.body(jax.nn.relu(self.stem(image))))
        return self.head(x.mean((1, 2)))


def haiku(images):
    x = jax.nn.relu(hk.Conv2D(24, 3, stride=2, name="stem")(images))
    x = jax.nn.relu(hk.Conv2D(40, 1, name="body")(x))
    return hk.Linear(4, name="head")(x.mean((1, 2)))


def plain(params, images):
    for name, stride in (("stem", 2), ("body", 1)):
        layout = ("NHWC", "HWIO", "NHWC")
        images = jax.nn.relu(
            jax.lax.conv_general_dilated(
                images, params[name]["w"], (stride, stride), "SAME", dimension_numbers=layout
            )
        )
    return images.mean((1, 2)) @ params["head"]["w"]


def objects_of(heading):
    """What a user of each library brings, under the names that the README uses."""
    if heading.startswith("**Flax Linen"):
        return {"model": Linen(), "variables": Linen().init(KEY, IMAGES)}
    if heading.startswith("**Flax NNX"):
        return {"model": NNX(nnx.Rngs(0))}
    if heading.startswith("**Equinox"):
        return {"model": Equinox(KEY), "images": jnp.moveaxis(IMAGES, -1, 1)}
    if heading.startswith("**Haiku"):
        net = hk.transform(haiku)
        return {"net": net, "params": net.init(KEY, IMAGES)}
    if heading.startswith("**Your own"):
        shapes = {"stem": (3, 3, 3, 24), "body": (1, 1, 24, 40), "head": (40, 4)}
        normal = np.random.default_rng(1).standard_normal
        params = {name: {"w": normal(shape, np.float32)} for name, shape in shapes.items()}
        return {"apply": plain, "params": params}
    return {}


@pytest.fixture(scope="module")
def namespaces():
    """What each block leaves behind, run one after the other as a reader would."""
    names = {"picture": Image.fromarray(data.chelsea())}
    left = {}
    for heading, block in BLOCKS:
        if heading.startswith("**Flax NNX") and flax.__version__ < "0.12":
            continue  # its modules are no pytrees yet
        names |= {"images": IMAGES, **objects_of(heading)}
        before = {name: names.get(name) for name in ("params", "variables", "model")}
        exec(compile(block, "README.md", "exec"), names)
        left[heading.strip("*").partition("*")[0]] = dict(names), before
    return left


def test_every_block_ran(namespaces):
    assert len(namespaces) == len(BLOCKS) == 8


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("Flax Linen", "variables"),
        ("Flax NNX", "model"),
        ("Equinox", "model"),
        ("Haiku", "params"),
        ("Your own function", "params"),
    ],
)
def test_a_network_of_each_library_is_transferred(namespaces, library, name):
    names, before = namespaces[library]
    assert names["logits"].shape == (2, 4)
    assert jnp.isfinite(names["logits"]).all()
    assert type(names[name]) is type(before[name])
    kernels = [
        [leaf for leaf in jax.tree.leaves(tree) if getattr(leaf, "ndim", 0) == 4]
        for tree in (names[name], before[name])
    ]
    assert len(kernels[0]) == 2
    assert not any(np.array_equal(*pair) for pair in zip(*kernels, strict=True))


def test_the_photograph_is_classified(namespaces):
    names, _ = list(namespaces.values())[-1]
    assert "cat" in names["pretrained"].categories[int(names["logits"][0].argmax())]


def test_the_readme_is_short():
    assert README.count("\n") <= 130


def test_the_first_screen_has_one_picture_that_loads_fast():
    ((text, path),) = re.findall(r"!\[(.*)\]\((.*)\)", README)
    assert README[: README.index(path)].count("\n") < 10
    assert len(text) > 100  # for those who do not see it
    assert (ROOT / path).stat().st_size <= 150_000
    with Image.open(ROOT / path) as picture:
        assert picture.size == (1600, 550)  # twice the 800 pixels that a README is wide


@pytest.mark.slow
def test_the_first_picture_is_that_of_the_results(tmp_path):
    save_first_picture(tmp_path / "picture.png")
    places = tmp_path / "picture.png", ROOT / "docs" / "first_picture.png"
    drawn, kept = (np.asarray(Image.open(place).convert("L"), float) for place in places)
    difference = np.abs(drawn - kept)
    assert difference.mean() < 3  # letters differ between versions of matplotlib


def test_no_placeholder_is_left():
    pages = [README, *(page.read_text() for page in (ROOT / "docs").glob("*.md"))]
    assert not any(re.search(r"DEMO_|GAP|TODO|XXX", page) for page in pages)


def test_the_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)h#][^)#]*)", README):
        assert (ROOT / target).exists(), target


def test_every_architecture_is_listed():
    page = (ROOT / "docs" / "models.md").read_text()
    assert [name for name in importers.available() if f"`{name}`" not in page] == []
