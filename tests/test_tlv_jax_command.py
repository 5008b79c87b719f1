"""`tlv-jax`: its commands on two networks, on real files and pictures, in this process."""

import functools
import json
import pkgutil
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import flax.nnx as nnx
import interrupted
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_inputs
import small_network
import torch
from helpers import import_torchvision
from parity import random_network
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_for_torch

import importers
import tlv_jax
from tlv_jax import methods
from train.commands.__main__ import main
from train.commands.reading import draw_pictures
from train.modules import target_of
from train.networks import keys_of

torchvision = import_torchvision()
pytestmark = pytest.mark.filterwarnings("default::tlv_jax.SimilarityWarning")
ROOT = Path(__file__).parent.parent
COMMANDS = (
    "{transfer,plan,similarity,fit,report,train,compare,rank,show,list,convert,verify,export}"
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Pictures, weights of a source, and a target's as torch writes them; all have 10 classes."""
    folder = tmp_path_factory.mktemp("inputs")
    small_inputs.save_inputs(folder)
    torch.save(random_network("squeezenet1_0").state_dict(), folder / "target.pth")
    return folder


@pytest.fixture(scope="module")
def networks(inputs):
    source = importers.load("squeezenet1_1", inputs / "source.safetensors").network
    return source, importers.load("squeezenet1_0", inputs / "target.pth").network


@pytest.fixture
def pair(inputs):
    """The arguments that name both networks with their files."""
    source = ["--src", "squeezenet1_1", "--src-weights", str(inputs / "source.safetensors")]
    return [*source, "--dst", "squeezenet1_0", "--dst-weights", str(inputs / "target.pth")]


@pytest.fixture
def own(pair):
    """The arguments that name a module of the user's own as target."""
    return [*pair[:4], "--dst", "small_network:Net", "--image-size", "32", "--num-classes", "3"]


@pytest.mark.parametrize("arguments", [["--help"], ["transfer", "--help"], ["train", "--help"]])
def test_help_does_not_wait_for_jax(arguments):
    code = (
        "import sys\n"
        "from train.commands.__main__ import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: sys.exit({'jax', 'flax', 'PIL'} & sys.modules.keys())"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stderr.strip() == "set()"
    assert (COMMANDS if arguments == ["--help"] else "--seed") in run.stdout


def test_the_installed_script_is_this_function():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert pkgutil.resolve_name(scripts["tlv-jax"]) is main


def test_a_shell_can_complete_commands_and_options(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--tyro-print-completion", "bash"])
    out = capsys.readouterr().out
    assert not stop.value.code
    assert "complete -F" in out
    assert all(word in out for word in ("similarity", "--src-weights", "--crossover-rate"))


def test_similarity_is_that_of_the_function(capsys, pair, networks):
    expected = tlv_jax.similarity(*networks)
    assert main(["similarity", *pair]) == 0
    assert capsys.readouterr().out == (
        f"similarity of squeezenet1_1 to squeezenet1_0: {expected:.3f}\n"
    )
    assert main(["similarity", *pair, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"similarity": expected}


def test_similarity_and_plan_need_no_weights(capsys, monkeypatch):
    monkeypatch.setattr("importers.weights._TORCHVISION", "http://127.0.0.1:9/")
    names = ["--src", "vgg16", "--dst", "resnet18"]
    assert main(["similarity", *names]) == 0
    assert main(["plan", *names, "--method", "tlvfc", "--num-classes", "7"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "params/fc" in line]
    assert line.split() == ["params/fc", "512", "->", "7", "drawn", "from", "statistics"]


def test_plan_is_that_of_the_method(capsys, pair, networks):
    assert main(["plan", *pair, "--method", "dpiat", "--json"]) == 0
    plan = tlv_jax.TransferPlan.from_json(capsys.readouterr().out)
    assert plan == tlv_jax.plan_transfer(*networks, methods.DPIAT)


def test_a_plan_of_ones_own_module(capsys, own):
    assert main(["plan", *own, "--dst-args", "width=5"]) == 0
    assert "params/conv  3x3, 3 -> 5" in capsys.readouterr().out


def test_a_module_is_found_in_the_current_folder(capsys, pair, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    code = "import small_network\nNet = small_network.Net\n"
    (tmp_path / "networks_of_this_test.py").write_text(code)
    arguments = [*pair[:4], "--dst", "networks_of_this_test:Net", "--image-size", "32"]
    assert main(["plan", *arguments]) == 0
    assert "params/dense" in capsys.readouterr().out


def test_a_transfer_without_a_file_is_shown_and_not_written(capsys, pair):
    assert main(["transfer", *pair]) == 0
    out = capsys.readouterr().out
    assert "channels: by " in out  # of the plan
    assert "from source" in out  # of the report
    assert out.endswith("nothing is written; name a file with --out\n")


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_transfer_is_written_for_torch(capsys, pair, networks, tmp_path, ending):
    out = tmp_path / f"out.{ending}"
    assert main(["transfer", *pair, "--method", "tlvfc", "--seed", "3", "--out", str(out)]) == 0
    assert f"{out}: 52 arrays of squeezenet1_0\n" in capsys.readouterr().out
    load = functools.partial(torch.load, weights_only=True) if ending == "pth" else load_for_torch
    state = load(out)
    torchvision.models.squeezenet1_0(num_classes=10).load_state_dict(state, strict=True)
    expected = tlv_jax.transfer(*networks, key=keys_of(3).transfer, method=methods.TLVFC)
    params, _ = importers.convert("squeezenet1_0", state)
    jax.tree.map(np.testing.assert_array_equal, params, expected["params"])
    assert list(tmp_path.iterdir()) == [out]


def test_a_fresh_target_gets_its_classes_and_statistics(pair, tmp_path):
    out = tmp_path / "resnet18.pth"
    arguments = [*pair[:4], "--dst", "resnet18", "--num-classes", "4", "--out", str(out)]
    assert main(["transfer", *arguments]) == 0
    network = torchvision.models.resnet18(num_classes=4)
    network.load_state_dict(torch.load(out, weights_only=True), strict=True)


def test_ones_own_module_is_written_with_its_own_paths(capsys, own, tmp_path):
    out = tmp_path / "net.safetensors"
    assert main(["transfer", *own, "--json", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("warning: The two networks are unlike")
    assert captured.err.count("\n") == 1
    made = json.loads(captured.out)
    assert made["out"] == str(out)
    assert {row["target"] for row in made["report"]["rows"]} == {"params/conv"}
    arrays = load_file(out)
    assert arrays["params/conv/kernel"].shape == (3, 3, 3, 8)
    assert arrays["params/dense/kernel"].shape == (8, 3)
    assert "batch_stats/norm/mean" in arrays


class Dropping(nnx.Module):
    """A network whose dropout holds a random key and its counter."""

    def __init__(self, num_classes, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(4, num_classes, rngs=rngs)

    def __call__(self, images):
        return self.dense(self.drop(nnx.relu(self.conv(images)).mean((1, 2))))


def test_an_nnx_module_is_written_without_its_random_keys(own, tmp_path):
    out = tmp_path / "net.safetensors"
    arguments = [*own, "--dst", f"{__name__}:Dropping", "--out", str(out)]
    assert main(["transfer", *arguments]) == 0
    kernels, biases = {"conv/kernel", "dense/kernel"}, {"conv/bias", "dense/bias"}
    assert load_file(out).keys() == kernels | biases


def test_report_says_what_the_target_receives(capsys, pair):
    assert main(["report", *pair, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows[0]["source"] == "params/features.0"
    assert 0 < rows[0]["share"] <= 1
    assert main(["report", *pair]) == 0
    assert "std before" in capsys.readouterr().out


def test_a_fit_sees_pictures_as_the_source_expects_them(capsys, own, inputs, tmp_path):
    (inputs / "pictures" / "damaged.png").write_bytes(b"no picture")
    out, pictures = tmp_path / "net.safetensors", inputs / "pictures"
    assert main(["fit", *own, "--images", str(pictures), "--count", "50", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert "1 of 1 convs fitted, mean R^2" in captured.out
    assert "unreadable files, skipped: 1" in captured.err
    assert "40, fewer than 50" in captured.err
    source = importers.load("squeezenet1_1", inputs / "source.safetensors")
    key, model = keys_of(0), small_network.Net(num_classes=3)
    target = target_of("net", model, key.init, jnp.zeros((1, 32, 32, 3))).network
    pixels = draw_pictures(pictures, 50, 32, seed=0) / np.float32(255)
    images = (pixels - np.float32(source.preprocess.mean)) / np.float32(source.preprocess.std)
    fitted = tlv_jax.fit(source.network, target, images, key=key.transfer)
    expected = fitted["params"]["conv"]["kernel"]
    np.testing.assert_allclose(load_file(out)["params/conv/kernel"], expected, atol=1e-5)


def test_pictures_are_drawn_by_the_seed(inputs):
    few, same, others = (draw_pictures(inputs / "pictures", 6, 32, seed) for seed in (1, 1, 2))
    assert few.shape == (6, 32, 32, 3)
    np.testing.assert_array_equal(few, same)
    assert np.any(few != others)


ERRORS = {
    "an unknown architecture": (["--src", "vgg17"], "Did you mean vgg"),
    "a file that is missing": (["--src-weights", "none.pth"], "none.pth: there is no such file"),
    "weights of another": (["--dst", "resnet18"], "its keys fit 'squeezenet1_0' best"),
    "a file for a module": (["--dst", "small_network:Net"], "weights of TARGET are not those of"),
    "arguments of no module": (["--dst-args", "width=5"], "Leave dst_args out"),
    "no classes": (["--num-classes", "0"], "num_classes=0"),
    "no pixels": (["--image-size", "0"], "image_size=0, expected at least 1"),
    "a negative seed": (["--seed", "-1"], "seed=-1, expected at least 0"),
    "another ending": (["--out", "x.onnx"], "ends in .safetensors, .pth or .pt"),
    "no folder to write to": (["--out", "none/x.pth"], "lies in none, which is no folder"),
    "a folder to write to": (["--out", "FOLDER/x.pth"], "is a folder. Name a file"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_is_one_paragraph_and_status_2(capsys, pair, inputs, tmp_path, case):
    arguments, message = ERRORS[case]
    (tmp_path / "x.pth").mkdir()
    arguments = [word.replace("FOLDER", str(tmp_path)) for word in arguments]
    assert main(["transfer", *pair, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message.replace("TARGET", str(inputs / "target.pth")) in captured.err
    assert "\n\n" not in captured.err
    assert "Traceback" not in captured.err


def test_a_module_that_cannot_be_had_is_one_error(capsys, pair, own):
    assert main(["plan", *pair[:4], "--dst", "nothing:Net"]) == 2
    assert "cannot be imported" in capsys.readouterr().err
    assert main(["plan", *own, "--dst-args", "height=5"]) == 2
    assert "--dst-args" in capsys.readouterr().err


def test_torch_has_no_file_of_ones_own_module(capsys, own, tmp_path):
    assert main(["transfer", *own, "--out", str(tmp_path / "net.pth")]) == 2
    assert "Name a .safetensors file" in capsys.readouterr().err


def test_a_prefix_of_no_file_is_refused(capsys):
    names = ["--src", "vgg16", "--dst", "resnet18"]
    assert main(["plan", *names, "--src-prefix", "model_ema"]) == 2
    assert "give a file with --src-weights" in capsys.readouterr().err


def test_weights_that_cannot_be_had_name_what_to_pass(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TLV_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr("importers.weights._TORCHVISION", "http://127.0.0.1:9/")
    assert main(["report", "--src", "vgg16", "--dst", "squeezenet1_1"]) == 2
    error = capsys.readouterr().err
    assert "Could not download" in error
    assert "--src-weights PATH" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "none"], "there is no such folder"),
        (["--images", "EMPTY"], "no readable picture among 0 files"),
        (["--images", "EMPTY", "--count", "0"], "count=0, expected at least 1"),
        (["--images", "EMPTY", "--src", "vit_b_16"], "takes images of one size only"),
    ],
)
def test_what_cannot_be_fitted_is_one_error(capsys, own, tmp_path, arguments, message):
    assert main(["fit", *own, *(word.replace("EMPTY", str(tmp_path)) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_an_unknown_command_is_status_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["transmit"])
    assert stop.value.code == 2
    assert "transmit" in capsys.readouterr().err


def test_files_are_listed_shown_converted_and_verified(capsys, inputs, tmp_path):
    assert main(["list"]) == 0
    assert "IMAGENET1K_V2" in capsys.readouterr().out
    assert main(["list", "--json"]) == 0
    (found,) = [
        row for row in json.loads(capsys.readouterr().out) if row["architecture"] == "alexnet"
    ]
    assert found["weights"] == "IMAGENET1K_V1"
    assert found["parameters"] == 61_100_840
    assert main(["show", "squeezenet1_1"]) == 0
    assert "params/features.0/kernel" in capsys.readouterr().out
    out, source = tmp_path / "target.safetensors", str(inputs / "target.pth")
    assert main(["convert", source, "--arch", "squeezenet1_0", "--out", str(out)]) == 0
    assert main(["verify", str(out), "--arch", "squeezenet1_1"]) == 2
    assert "'squeezenet1_0'" in capsys.readouterr().err


@pytest.fixture
def training(inputs, tmp_path):
    """What `train` and `compare` share."""
    source = ["--source", "squeezenet1_1", "--source-weights", str(inputs / "source.safetensors")]
    data = ["--dataset", "folder", "--data-dir", str(inputs / "pictures"), "--image-size", "32"]
    length = ["--epochs", "1", "--batch-size", "8", "--out", str(tmp_path / "runs")]
    return [*source, "--target", "small_network:Net", *data, *length]


def test_a_comparison_and_a_ranking_are_handed_on(capsys, training):
    assert main(["compare", *training, "--seeds", "0"]) == 1
    assert "seeds=0, expected at least 1" in capsys.readouterr().err
    assert main(["rank", "--data-dir", "none", "--sources", "vgg17"]) == 1
    assert "Did you mean vgg" in capsys.readouterr().err


@pytest.mark.slow
def test_a_comparison_and_a_ranking_run(capsys, training, inputs):
    once = ["--seeds", "1", "--learning-rates", "1e-3", "--methods", "he", "default"]
    assert main(["compare", *training, *once]) == 0
    assert "default" in capsys.readouterr().out
    source = f"squeezenet1_1={inputs / 'source.safetensors'}"
    data = ["--data-dir", str(inputs / "pictures"), "--image-size", "32"]
    assert main(["rank", *data, "--source-weights", source, "--out", str(inputs / "runs")]) == 0
    assert "squeezenet1_1" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_is_stopped_says_how_this_command_continues_it(tmp_path):
    interrupted.make_inputs(tmp_path)
    arguments = interrupted.arguments(tmp_path, tmp_path, "--name", "run")
    process = interrupted.start(["train", *arguments], module="train.commands")
    interrupted.wait_for(process, (tmp_path / "run" / "checkpoints" / "transferred").exists)
    process.send_signal(signal.SIGINT)
    status, _, errors = interrupted.finish(process)
    assert status == 130
    command = shlex.split(errors.splitlines()[-1].partition("continue with: ")[2])
    assert command == ["tlv-jax", "train", *arguments, "--name", "run", "--resume"]
