"""Networks of the user's own, through a whole run: named on the command line, or given."""

import dataclasses
import json

import flax.nnx as nnx
import pytest
import small_inputs
from test_target import CallOnly, OfNNX

from train import Config
from train.__main__ import main
from train.loop import run

pytestmark = pytest.mark.filterwarnings("ignore::tlv_jax.SimilarityWarning")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A small folder of pictures, a source with random weights, and two epochs."""
    folder = tmp_path_factory.mktemp("own")
    return Config(
        source="squeezenet1_1",
        source_weights=small_inputs.save_source(folder / "squeezenet.safetensors"),
        dataset="folder",
        data_dir=small_inputs.save_photographs(folder / "pictures"),
        image_size=32,
        epochs=2,
        batch_size=8,
        crossover_rate=0.5,
        out=folder / "runs",
    )


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(CallOnly(num_classes=2), id="linen", marks=pytest.mark.slow),
        pytest.param(OfNNX(nnx.Rngs(0), num_classes=2), id="nnx"),
    ],
)
def test_a_module_is_trained_and_resumed(config, module):
    name = type(module).__name__
    first = run(dataclasses.replace(config, epochs=2, name=f"{name}-whole"), model=module)
    assert [each.name for each in first.runs] == ["transferred", "he"]
    assert first.plan.pairs
    assert len(first.runs[0].epochs) == 2
    settings = json.loads((first.folder / "config.json").read_text())
    assert settings["target"] == f"test_target:{name}"
    again = dataclasses.replace(config, name=f"{name}-whole", resume=True)
    for one, other in zip(first.runs, run(again, model=module).runs, strict=True):
        assert one.test == other.test


def test_a_module_is_named_on_the_command_line(config, capsys):
    options = {
        "source": config.source,
        "source-weights": config.source_weights,
        "dataset": "folder",
        "data-dir": config.data_dir,
        "image-size": 32,
        "epochs": 1,
        "batch-size": 8,
        "out": config.out,
        "target": "small_network:Net",
        "name": "named",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    assert main([*arguments, "--no-baseline", "--target-args", "width=5", "dropout=0.5"]) == 0
    settings = json.loads((config.out / "named" / "config.json").read_text())
    assert settings["target_args"] == ["width=5", "dropout=0.5"]
    assert "3x3, 3 -> 5" in capsys.readouterr().out
    assert main([*arguments, "--target-args", "breadth=5"]) == 1
    assert "breadth" in capsys.readouterr().err
