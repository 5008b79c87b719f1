import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from train.__main__ import main
from train.config import DATASETS, Config, HostOptions, MethodOptions, RecipeOptions
from train.errors import ConfigError
from train.resolve import resolve

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_dataset_s_defaults_fill_what_is_left_out(dataset):
    config = resolve(Config(dataset=dataset))
    assert (config.image_size, config.epochs) == DATASETS[dataset]


def test_what_is_given_stays():
    config = resolve(Config(image_size=40, epochs=3))
    assert (config.image_size, config.epochs) == (40, 3)


def test_a_network_is_trained_as_published_by_default():
    config = Config()
    assert (config.learning_rate, config.weight_decay, config.batch_size) == (1e-4, 5e-4, 128)
    assert config.crossover_rate == 0.1


def test_a_run_folder_is_named_after_the_class_of_a_user_s_own_network():
    config = Config(target="examples.odd_mobilenet:OddMobileNet", seed=3)
    assert config.folder.name == "efficientnet_lite0-OddMobileNet-elpv-3"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("train_images", 0),
        ("image_size", 0),
        ("epochs", 0),
        ("batch_size", -1),
        ("learning_rate", float("nan")),
        ("weight_decay", -1.0),
        ("crossover_rate", 1.5),
        ("seed", -1),
        ("save_every_steps", 0),
        ("save_every_minutes", 0.0),
        ("save_every_minutes", float("nan")),
    ],
)
def test_impossible_numbers_are_refused(setting, value):
    with pytest.raises(ConfigError, match=f"{setting}={value}"):
        resolve(dataclasses.replace(Config(), **{setting: value}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data_dir": Path("photographs")}, "comes with a package. Set dataset=folder"),
        ({"dataset": "cifar10", "on_bad_image": "stop"}, "on_bad_image='stop' does nothing for"),
        ({"hosts": HostOptions(rank=0)}, r"hosts\.rank=0 without hosts\.join: .* train alone"),
        (
            {
                "method": MethodOptions("none"),
                "crossover_rate": 0.0,
                "source_weights": Path("resnet50.pth"),
            },
            r"source_weights='resnet50\.pth' does nothing: no source is used",
        ),
    ],
)
def test_what_does_nothing_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        resolve(Config(**settings))


def test_help_names_every_setting_without_waiting_for_jax():
    code = (
        "import sys; from train.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'tyro' in sys.modules and 'jax' not in sys.modules"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in shown
    for part in dataclasses.fields(MethodOptions)[1:]:
        assert f"--method.{part.name} " in shown
    for part in dataclasses.fields(RecipeOptions)[1:]:
        assert f"--recipe.{part.name.replace('_', '-')} " in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["--epochs", "many"],
        ["--dataset", "imagenet"],
        ["--unknown", "1"],
        ["--method", "best"],
        ["--method.rule", "average"],
    ],
)
def test_wrong_flags_end_with_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_an_unreachable_source_is_one_sentence_and_no_traceback(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TLV_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr("importers.weights._TORCHVISION", "http://127.0.0.1:9/")
    assert main(["--source", "vgg16", "--dataset", "cifar10", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: Could not download http://127.0.0.1:9/vgg16-397923af.pth")
    assert "--source-weights PATH" in error
    assert "Traceback" not in error


def test_a_run_that_is_stopped_by_hand_says_how_to_go_on(capsys, monkeypatch):
    def stopped(config):
        raise KeyboardInterrupt

    monkeypatch.setattr("train.loop.run", stopped)
    assert main(["--out", "somewhere"]) == 130
    assert "add --resume to continue the run in somewhere" in capsys.readouterr().err


def test_an_unknown_architecture_is_told_with_close_names(capsys, tmp_path):
    assert main(["--source", "resnet19", "--out", str(tmp_path)]) == 1
    assert "resnet18" in capsys.readouterr().err
