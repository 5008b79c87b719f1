import re
import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage import data

import importers
import tlv_jax

# Of the pair on the first screen; a reader sees it as well.
pytestmark = pytest.mark.filterwarnings("ignore::tlv_jax.SimilarityWarning")

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = [
    textwrap.dedent(block)
    for block in re.findall(r"^ *```python\n(.*?)^ *```", README, re.M | re.S)
]


@pytest.fixture(scope="module")
def namespace():
    """What the README's blocks leave behind, run one after the other as a reader would."""
    names = {"picture": Image.fromarray(data.chelsea())}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    return names


def test_the_code_runs_from_top_to_bottom(namespace):
    assert len(BLOCKS) == 5
    assert namespace["logits"].shape[0] == 1
    assert namespace["plan"].rule == tlv_jax.rules.bind(tlv_jax.presets.tlvfc()["rule"])
    assert namespace["layers"][0].path == "params/conv1"


def test_the_parameters_of_the_first_screen_are_transferred(namespace):
    before = namespace["variables"]["params"]["layer1.0"]["conv1"]["kernel"]
    after = namespace["params"]["layer1.0"]["conv1"]["kernel"]
    assert after.shape == before.shape
    assert not np.array_equal(before, after)
    assert jnp.isfinite(after).all()


def test_the_photograph_is_classified(capsys, namespace):
    pretrained = namespace["pretrained"]
    assert "cat" in pretrained.categories[int(namespace["logits"][0].argmax())]


@pytest.mark.parametrize("name", importers.available())
def test_every_architecture_is_named(name):
    assert f"`{name}`" in README


def test_the_errors_are_the_worst_of_the_measured_ones():
    table = (ROOT / "docs" / "parity.md").read_text()
    measured = {
        name: max(float(cell) for cell in cells.split("|")[1:5])
        for name, cells in re.findall(r"^\| `(\w+)` \|(.*)\|$", table, re.M)
    }
    assert len(measured) == 80
    rows = re.findall(r"^\| .*?\| (`.*?) \| (\S+) \|$", README, re.M)
    listed = {name: float(error) for names, error in rows for name in re.findall(r"`(\w+)`", names)}
    for names, error in rows:
        members = [measured[name] for name in re.findall(r"`(\w+)`", names) if name in measured]
        assert not members or float(error) == max(members), names
    assert measured.keys() <= listed.keys()


def test_no_placeholder_is_left():
    assert not re.search(r"DEMO_|TEST_MINUTES|TODO|XXX", README)
