"""`python -m importers`, on real files, in this process so that torchvision can be imported."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import import_torchvision
from parity import random_network
from safetensors.numpy import load_file

from importers.__main__ import main

import_torchvision()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "squeezenet.pth"
    torch.save({"model": random_network("squeezenet1_1").state_dict(), "epoch": 3}, path)
    return path


def test_help_does_not_wait_for_jax():
    code = (
        "import sys\n"
        "from importers.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: sys.exit({'jax', 'flax', 'PIL'} & sys.modules.keys())"
    )
    folder = Path(__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert "{list,show,convert,verify}" in run.stdout
    assert run.stderr.strip() == "set()"


def test_list_names_every_set_of_weights(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 118
    (line,) = [line for line in lines if line.startswith("resnet50") and "V2" in line]
    assert line.split() == [
        "resnet50",
        "25,557,032",
        "IMAGENET1K_V2",
        "(DEFAULT)",
        "80.86%",
        "97.8",
    ]


def test_show_prints_weights_and_keys(capsys):
    assert main(["show", "swin_v2_t"]) == 0
    out = capsys.readouterr().out
    assert "https://download.pytorch.org/models/swin_v2_t-b137f0e2.pth" in out
    assert "resized to 260 (bicubic), cropped to 256" in out
    assert "features.1.0.attn.qkv.weight" in out
    assert "params/features.1.0/attn/qkv/kernel" in out
    assert "features.1.0.attn.relative_coords_table" in out


def test_convert_writes_what_torch_and_verify_take(capsys, checkpoint, tmp_path):
    out = tmp_path / "squeezenet.safetensors"
    assert main(["convert", str(checkpoint), "--arch", "squeezenet1_1", "--out", str(out)]) == 0
    expected = torch.load(checkpoint)["model"]
    written = load_file(out)
    assert written.keys() == expected.keys()
    for key, array in written.items():
        np.testing.assert_array_equal(array, expected[key])
    assert main(["verify", str(out), "--arch", "squeezenet1_1"]) == 0
    assert "(within 1e-04)" in capsys.readouterr().out


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A checkpoint with an average of the network beside it."""
    network = random_network("squeezenet1_1")
    averaged = torch.optim.swa_utils.AveragedModel(network)
    averaged.update_parameters(random_network("squeezenet1_1", seed=1))
    path = tmp_path_factory.mktemp("several") / "squeezenet.pth"
    torch.save({"model": network.state_dict(), "model_ema": averaged.state_dict()}, path)
    return path


def test_a_prefix_chooses_the_network_to_convert_and_verify(capsys, several, tmp_path):
    out = tmp_path / "squeezenet.safetensors"
    arguments = [str(several), "--arch", "squeezenet1_1"]
    assert main(["convert", *arguments, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "2 times, under the prefixes 'model', 'model_ema.module'" in error
    assert "--prefix" in error
    assert main(["convert", *arguments, "--out", str(out), "--prefix", "model_ema"]) == 0
    key = "features.0.weight"
    np.testing.assert_array_equal(
        load_file(out)[key], torch.load(several)["model_ema"][f"module.{key}"]
    )
    assert main(["verify", *arguments, "--prefix", "model_ema"]) == 0
    assert "(within 1e-04)" in capsys.readouterr().out


@pytest.mark.filterwarnings("default::importers.PrefixWarning")
def test_a_warning_is_one_sentence(capsys, checkpoint, tmp_path):
    state_dict = {f"net.{key}": t for key, t in torch.load(checkpoint)["model"].items()}
    torch.save({**state_dict, "loss.weight": torch.ones(3)}, tmp_path / "c.pth")
    out = tmp_path / "squeezenet.safetensors"
    arguments = ["convert", str(tmp_path / "c.pth"), "--arch", "squeezenet1_1", "--out", str(out)]
    assert main(arguments) == 0
    assert capsys.readouterr().err == (
        "warning: Only what is under 'net' in the checkpoint is used as 'squeezenet1_1'. Left out: "
        "loss.weight.\n"
    )


def test_convert_and_verify_want_the_classifier(capsys, checkpoint, tmp_path):
    path = tmp_path / "headless.pth"
    state_dict = torch.load(checkpoint)["model"]
    torch.save({k: t for k, t in state_dict.items() if not k.startswith("classifier.")}, path)
    for command in (["convert", "--out", str(tmp_path / "s.safetensors")], ["verify"]):
        assert main([command[0], str(path), "--arch", "squeezenet1_1", *command[1:]]) == 2
        error = capsys.readouterr().err.partition("\n")[0]
        assert "its classifier is missing or another one. importers.load replaces it" in error


def test_verify_compares_with_torchvision(capsys, checkpoint):
    assert main(["verify", str(checkpoint), "--arch", "squeezenet1_1"]) == 0
    out = capsys.readouterr().out
    assert "all 727,626 parameters of squeezenet1_1 with 10 classes are there" in out
    assert "(within 1e-04)" in out


def test_verify_fails_where_the_logits_differ(capsys, checkpoint, monkeypatch):
    monkeypatch.setattr("importers.commands.TOLERANCE", 1e-12)
    assert main(["verify", str(checkpoint), "--arch", "squeezenet1_1"]) == 1
    assert "(beyond 1e-12)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "CHECKPOINT", "--arch", "squeezenet1_0"], "fit 'squeezenet1_1' best"),
        (["verify", "CHECKPOINT", "--arch", "squeezenet"], "Did you mean squeezenet1"),
        (["verify", "nothing.pth", "--arch", "resnet18"], "there is no such file"),
        (["show", "resnet17"], "Did you mean resnet"),
        (
            ["convert", "CHECKPOINT", "--arch", "squeezenet1_1", "--out", "none/x.safetensors"],
            "none/x.safetensors: cannot be written",
        ),
        (
            ["convert", "CHECKPOINT", "--arch", "squeezenet1_1", "--out", "FOLDER"],
            "FOLDER: cannot be written (Is a directory)",
        ),
    ],
)
def test_bad_input_is_one_error_and_status_2(capsys, checkpoint, tmp_path, arguments, message):
    paths = {"CHECKPOINT": str(checkpoint), "FOLDER": str(tmp_path)}
    assert main([paths.get(word, word) for word in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message.replace("FOLDER", str(tmp_path)) in captured.err
    assert not list(tmp_path.iterdir())


def test_a_reader_that_stops_is_no_error():
    command = [sys.executable, "-m", "importers", "list"]
    folder = Path(__file__).parent.parent
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        run.stdout.close()
        assert run.stderr.read() == b""
    assert run.returncode == 0


def test_verify_works_without_torchvision(capsys, checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert main(["verify", str(checkpoint), "--arch", "squeezenet1_1"]) == 0
    assert "not compared with torchvision, which cannot be imported" in capsys.readouterr().out
