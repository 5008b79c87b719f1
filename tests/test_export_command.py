"""`tlv-jax export`, and weights of one's own that are read back, on a real run and checkpoint."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import small_inputs
import torch
import trees
from helpers import import_torchvision
from safetensors.numpy import load_file

import importers
from train.commands.__main__ import main
from train.target_weights import read_weights

torchvision = import_torchvision()
pytestmark = pytest.mark.filterwarnings("default::tlv_jax.SimilarityWarning")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    small_inputs.save_inputs(folder)
    return folder


def train(inputs, target, *more):
    """Trains for one epoch, without a twin; returns the run folder."""
    source = ["--source", "squeezenet1_1", "--source-weights", str(inputs / "source.safetensors")]
    data = ["--dataset", "folder", "--data-dir", str(inputs / "pictures"), "--image-size", "32"]
    length = ["--epochs", "1", "--batch-size", "8", "--out", str(inputs / "runs")]
    alone = ["--crossover-rate", "0", "--no-baseline", "--name", target.rpartition(":")[2]]
    assert main(["train", *source, "--target", target, *data, *length, *alone, *more]) == 0
    return inputs / "runs" / alone[-1]


@pytest.fixture(scope="module")
def run(inputs):
    """Of a Linen module of the user's own."""
    return train(inputs, "small_network:Net", "--target-args", "width=6")


@pytest.fixture(scope="module")
def checkpoint(inputs):
    """A training of an architecture with 5 classes, as Orbax writes it, and its variables."""
    variables = trees.random_variables(trees.shapes("mnasnet0_5", num_classes=5), seed=0)
    moments = {"mu": variables["params"], "count": np.int32(3)}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(inputs / "checkpoint", {**variables, "opt_state": moments, "step": 3})
    return inputs / "checkpoint", variables


def test_a_run_is_shown(run, capsys):
    assert main(["show", str(run)]) == 0
    assert "Net: finished" in capsys.readouterr().out
    assert main(["show", str(run.parent / "other")]) == 2
    assert "There is no run in" in capsys.readouterr().err


def test_a_run_is_exported_with_what_its_images_are_normalized_by(run, capsys, tmp_path):
    out = tmp_path / "net.safetensors"
    assert main(["export", str(run), "--out", str(out)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{out}: 8 arrays of small_network:Net, from step 3 of 'transferred' in {run}"
    assert second.startswith("images are normalized by mean (0.485, 0.456, 0.406) and standard")
    arrays = load_file(out)
    expected = read_weights(run, is_nnx=False).leaves
    assert arrays.keys() == expected.keys() >= {"params/conv/kernel", "batch_stats/norm/mean"}
    assert all(np.array_equal(arrays[path], expected[path]) for path in expected)


@pytest.mark.parametrize("exported", [True, False], ids=["its file", "the run itself"])
def test_a_transfer_goes_over_the_weights_of_a_run(inputs, run, capsys, tmp_path, exported):
    given, out = tmp_path / "given.safetensors", tmp_path / "net.safetensors"
    assert main(["export", str(run), "--out", str(given)]) == 0
    source = ["--src", "squeezenet1_1", "--src-weights", str(inputs / "source.safetensors")]
    target = ["--dst", "small_network:Net", "--dst-args", "width=6", "--num-classes", "2"]
    weights = ["--dst-weights", str(given if exported else run), "--image-size", "32"]
    arguments = [*source, *(target if exported else target[:-2]), *weights]
    assert main(["transfer", *arguments, "--out", str(out)]) == 0
    before, after = load_file(given), load_file(out)
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert "params/conv/kernel" in changed
    assert "params/dense/kernel" not in changed
    assert main(["similarity", *arguments]) == 0
    assert "similarity of squeezenet1_1 to small_network:Net" in capsys.readouterr().out


def test_a_checkpoint_of_orbax_is_written_for_torch(checkpoint, capsys, tmp_path):
    path, variables = checkpoint
    out = tmp_path / "net.pth"
    assert main(["export", str(path), "--arch", "mnasnet0_5", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}: 262 arrays of mnasnet0_5, from {path}\n"
    assert captured.err == "left out, as no weights: opt_state, step\n"
    state = torch.load(out, weights_only=True)
    torchvision.models.mnasnet0_5(num_classes=5).load_state_dict(state, strict=True)
    params, batch_stats = importers.convert("mnasnet0_5", state)
    jax.tree.map(np.testing.assert_array_equal, params, dict(variables["params"]))
    jax.tree.map(np.testing.assert_array_equal, batch_stats, dict(variables["batch_stats"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["CHECKPOINT"], "its architecture is not known. Name it with --arch"),
        (["CHECKPOINT", "--arch", "mnasnet"], "Did you mean"),
        (["CHECKPOINT", "--arch", "resnet18"], "The parameters are not those of 'resnet18'"),
        (["CHECKPOINT", "--arch", "my.module:Net", "--out", "x.pth"], "Name a .safetensors file"),
        (["FILE", "--arch", "squeezenet1_1"], "is a file, expected the folder of a run"),
        (["none", "--arch", "resnet18"], "none: there is no such file or folder"),
        (["RUN", "--out", "x.onnx"], "ends in .safetensors, .pth or .pt"),
    ],
)
def test_what_cannot_be_exported_is_one_error(
    inputs, checkpoint, run, capsys, monkeypatch, tmp_path, arguments, message
):
    monkeypatch.chdir(tmp_path)
    files = {"CHECKPOINT": checkpoint[0], "RUN": run, "FILE": inputs / "source.safetensors"}
    places = {word: str(path) for word, path in files.items()}
    given = [places.get(word, word) for word in arguments]
    assert main(["export", "--out", "x.safetensors", *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_of_an_architecture_is_written_for_torch(inputs, tmp_path):
    run, out = train(inputs, "mnasnet0_5"), tmp_path / "net.pth"
    assert main(["export", str(run), "--out", str(out)]) == 0
    state = torch.load(out, weights_only=True)
    torchvision.models.mnasnet0_5(num_classes=2).load_state_dict(state, strict=True)


@pytest.mark.slow
def test_a_run_of_an_nnx_module_keeps_its_paths(inputs, tmp_path):
    run, out = train(inputs, "test_target:OfNNX"), tmp_path / "net.safetensors"
    assert main(["export", str(run), "--out", str(out)]) == 0
    paths = load_file(out).keys()
    assert "conv/kernel" in paths
    assert not any(path.startswith("params/") for path in paths)
