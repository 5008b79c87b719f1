"""What a run starts from: several sources, no transfer, weights of the target's own."""

import contextlib
import dataclasses
import fcntl
import io
import json
import shutil

import chex
import interrupted
import jax
import numpy as np
import pytest
import small_inputs
import trees
from rich.console import Console

import importers
import train
from tlv_jax.errors import TLVError
from train.config import DistillOptions, MatchOptions, MethodOptions, RecipeOptions
from train.errors import ConfigError
from train.machine import note_machine
from train.networks import expected_by_sources
from train.normalization import expected_statistics
from train.show import show
from train.statistics import Statistics

pytestmark = pytest.mark.filterwarnings("ignore::tlv_jax.SimilarityWarning")

NONE = MethodOptions("none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("starts")
    interrupted.make_inputs(folder)
    variables = trees.random_variables(trees.shapes("squeezenet1_0"), seed=1)
    path = folder / "other.safetensors"
    importers.write_safetensors(path, "squeezenet1_0", variables["params"], {})
    return folder


@pytest.fixture(scope="module")
def config(folder):
    """Of one step without a change, so that a training ends with what it starts from."""
    return train.Config(
        **small_inputs.settings_of(folder / "photographs", folder / "source.safetensors"),
        epochs=1,
        batch_size=16,
        learning_rate=0.0,
        out=folder / "runs",
    )


def run(config, **changes):
    output = io.StringIO()
    changed = dataclasses.replace(config, **changes)
    return train.run(changed, console=Console(file=output, width=120)), output.getvalue()


def start_of(result, name):
    """The parameters after a training of one step with a learning rate of 0."""
    return interrupted.checkpoints_of(result.folder, (name,))[name, 1]["params"]


def shown(folder):
    output = io.StringIO()
    show(folder, Console(file=output, width=160))
    return output.getvalue()


@pytest.fixture(scope="module")
def mixed(config, folder):
    """Of two sources, whose second has a first layer of the target's shape."""
    both = {
        "target_args": ("width=64",),
        "method": MethodOptions("default", match=MatchOptions("index")),
        "source": ("squeezenet1_0", "squeezenet1_1"),
        "source_weights": (folder / "other.safetensors", folder / "source.safetensors"),
        "crossover_rate": 0.0,
        "baseline": False,
    }
    return dataclasses.replace(config, **both), *run(config, **both)


def test_each_layer_takes_the_best_of_several_sources(mixed, folder):
    _, result, _ = mixed
    assert result.folder.name == "squeezenet1_0+squeezenet1_1-Net-folder-0"
    ((source, target),) = result.plan.pairs
    assert (source[:2], target) == ("1/", "params/conv")
    assert source in (result.folder / "plan.txt").read_text()
    assert source in (result.folder / "report.txt").read_text()
    assert "['squeezenet1_0', 'squeezenet1_1']" in shown(result.folder)
    weights = importers.read_state_dict(folder / "source.safetensors")
    given = weights["features.0.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(start_of(result, "transferred")["conv"]["kernel"], given)


@pytest.mark.slow
def test_the_first_of_several_sources_lends_features(mixed, config):
    """Where all features are lent, the loss of a step is that of the lender's features."""

    def loss(**changes):
        result, _ = run(config, baseline=False, crossover_rate=1.0, **changes)
        return result.runs[0].epochs[0]["train_loss"]

    width = {"target_args": ("width=512",)}
    both = {"source": mixed[0].source, "source_weights": mixed[0].source_weights}
    alone = [
        loss(source=source, source_weights=weights, **width)
        for source, weights in zip(*both.values(), strict=True)
    ]
    assert loss(**both, **width) == alone[0] != alone[1]


def test_a_run_of_several_sources_is_resumed(mixed):
    config, result, _ = mixed
    resumed, output = run(config, resume=True)
    assert resumed.runs == result.runs
    assert "epoch 1 of 1" not in output
    swapped = {"source": config.source[::-1], "source_weights": config.source_weights[::-1]}
    with pytest.raises(ConfigError, match=r"started with source=\['squeezenet1_0', 'squ"):
        run(config, resume=True, name=result.folder.name, **swapped)


def test_a_run_is_not_resumed_with_other_weights_of_a_source(mixed, folder):
    path = folder / "other.safetensors"
    before = path.read_bytes()
    variables = trees.random_variables(trees.shapes("squeezenet1_0"), seed=2)
    importers.write_safetensors(path, "squeezenet1_0", variables["params"], {})
    try:
        with pytest.raises(ConfigError, match="The weights of squeezenet1_0 have changed since"):
            run(mixed[0], resume=True)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": ("vgg11", "vgg13")}, r"source_weights='.*': expected one for each source, in"),
        ({"source_prefix": ("a", "b")}, "source_prefix='a, b': expected one for each source"),
        ({"source": ()}, "expected an architecture"),
        (
            {"source": ("vgg11", "vgg13"), "source_weights": None, "method": NONE},
            "with method=none: .* Give one source",
        ),
        ({"method": MethodOptions("none", head="keep")}, r"method\.head=keep with method=none"),
        ({"target_weights": "weights.pth"}, "without a method.*Set method=none to train them as"),
        ({"target_weights": "weights.pth", "method": NONE}, "there is no such file or folder"),
    ],
)
def test_a_start_that_is_ambiguous_is_refused(config, changes, message):
    if "target_weights" in changes:
        changes = {**changes, "target_weights": config.out / changes["target_weights"]}
    with pytest.raises(ConfigError, match=message):
        run(config, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 64}, "There are 28 training images, fewer than batch_size=64"),
        (
            {"target": "test_target:OfNNX", "distill": DistillOptions("plan")},
            "the activations of an NNX module cannot be had",
        ),
    ],
)
def test_what_cannot_be_trained_leaves_no_folder(config, changes, message):
    with pytest.raises(TLVError, match=message):
        run(config, name="none", **changes)
    assert not (config.out / "none").exists()


@pytest.fixture(scope="module")
def crossed(config):
    return run(config, method=NONE, name="crossed")


def test_crossover_is_trained_alone(crossed):
    result, output = crossed
    assert [each.name for each in result.runs] == ["he+crossover", "he"]
    assert result.plan is None
    assert result.report is None
    assert not list(result.folder.glob("plan*")) + list(result.folder.glob("report*"))
    chex.assert_trees_all_equal(*(start_of(result, each.name) for each in result.runs))
    losses = [each.epochs[0]["train_loss"] for each in result.runs]
    assert losses[0] != losses[1]  # features were lent to the one alone
    assert "he+crossover" in output
    assert "he+crossover" in shown(result.folder)


@pytest.fixture(scope="module")
def scratch(config):
    """Trained from scratch; what is tested is an average of its weights."""
    changes = {"source": "vgg16", "source_weights": None, "crossover_rate": 0.0, "epochs": 2}
    recipe = RecipeOptions(ema=0.5)
    return run(config, method=NONE, learning_rate=0.01, recipe=recipe, **changes)


def test_without_transfer_and_crossover_there_is_one_training_and_no_source(scratch):
    result, output = scratch  # the weights of a VGG16 are nowhere here
    assert [each.name for each in result.runs] == ["he"]
    assert "no transfer, crossover or distillation: a twin would be the same" in output
    assert result.folder.name == "Net-folder-0"


@pytest.fixture(scope="module")
def finetuned(config, scratch):
    """From the weights of that run, named after a source that normalizes otherwise."""
    sources = {"source": "efficientnet_lite0", "source_weights": None, "crossover_rate": 0.0}
    weights = {"target_weights": scratch[0].folder, "method": NONE, "name": "finetuned"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        result, output = run(config, **sources, **weights)
    return result, output + printed.getvalue()


def best_of(result):
    """The averaged weights of the epoch that was tested."""
    (training,) = result.runs
    saved = interrupted.checkpoints_of(result.folder, (training.name,))
    return saved[training.name, training.best_epoch]["average"]


def test_the_best_weights_of_a_run_are_finetuned(finetuned, scratch):
    result, output = finetuned
    assert [each.name for each in result.runs] == ["finetune"]
    chex.assert_trees_all_equal(start_of(result, "finetune"), best_of(scratch[0]))
    step = scratch[0].runs[0].best_epoch
    assert f"weights of the target: step {step} of 'he' in {scratch[0].folder}" in output
    assert f"images are normalized as --target-weights {scratch[0].folder} expects" in output


def test_a_transfer_goes_over_the_weights_that_the_target_was_given(config, scratch):
    result, _ = run(
        config,
        target_weights=scratch[0].folder,
        method=MethodOptions("default"),
        crossover_rate=0.0,
        name="over",
    )
    assert [each.name for each in result.runs] == ["transferred", "finetune"]
    transferred, twin = (start_of(result, each.name) for each in result.runs)
    given = best_of(scratch[0])
    chex.assert_trees_all_equal(twin, given)
    assert not np.array_equal(transferred["conv"]["kernel"], given["conv"]["kernel"])
    chex.assert_trees_all_equal(transferred["dense"], given["dense"])


def test_a_run_is_normalized_as_the_weights_expect_that_it_starts_from(config, scratch, finetuned):
    def normalization(result):
        return json.loads((result.folder / "normalization.json").read_text())

    given = normalization(scratch[0])
    (source,) = expected_by_sources(dataclasses.replace(config, source="efficientnet_lite0"))
    assert given != json.loads(json.dumps(source._asdict()))
    assert normalization(finetuned[0]) == given


def test_other_normalizations_than_that_of_the_run_are_told(config, capsys):
    one, other = Statistics((0.5,) * 3, (0.25,) * 3), Statistics((0.0,) * 3, (1.0,) * 3)
    two = dataclasses.replace(config, source=("first", "second"))
    assert expected_statistics(two, (one, other), None) == one
    line = f"images are normalized as first expects, by {one}; second expects {other}\n"
    assert capsys.readouterr().out == line
    weights = dataclasses.replace(config, source="first", target_weights="w.pth")
    assert expected_statistics(weights, (one,), None) == one
    assert "; what --target-weights w.pth expects is not known" in capsys.readouterr().out
    assert expected_statistics(weights, (one,), other) == one
    assert f"; --target-weights w.pth expects {other}" in capsys.readouterr().out
    expected_statistics(two, (one, one), None)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("part", ["progress/metadata", "state"])
def test_a_damaged_checkpoint_is_not_started_from(config, scratch, tmp_path, part):
    damaged = shutil.copytree(scratch[0].folder, tmp_path / "damaged")
    step = scratch[0].runs[0].best_epoch
    path = damaged / "checkpoints" / "he" / str(step) / part
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.write_text(path.read_text().replace('"epoch": 1', '"epoch": 7'))
    with pytest.raises(ConfigError, match=r"is damaged: its values|cannot be read"):
        run(config, target_weights=damaged, method=NONE)


def test_weights_of_a_run_that_goes_on_are_refused(config, scratch):
    with (scratch[0].folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as the process of a run does
        with pytest.raises(ConfigError, match="is still going on, so its best weights may change"):
            run(config, target_weights=scratch[0].folder, method=NONE)


def test_the_machine_and_the_versions_are_kept_and_shown(scratch, config):
    result, _ = scratch
    path = result.folder / "machines.json"
    (entry,) = json.loads(path.read_text())
    assert entry["jax"] == jax.__version__
    assert {"machine", "devices", "python", "optax", "orbax-checkpoint", "tlv-jax"} <= entry.keys()
    path.write_text(json.dumps([{**entry, "jax": "0.0.1"}]))
    settings = json.loads((result.folder / "config.json").read_text())
    again = dataclasses.replace(
        config,
        **{name: settings[name] for name in ("source", "crossover_rate", "epochs")},
        source_weights=None,
        learning_rate=0.01,
        recipe=RecipeOptions(ema=0.5),
        method=NONE,
        resume=True,
    )
    train.run(again, console=Console(quiet=True))
    note_machine(result.folder)  # nothing is new
    assert [each["jax"] for each in json.loads(path.read_text())] == ["0.0.1", jax.__version__]
    lines = [line.replace("│", " ").split() for line in shown(result.folder).splitlines()]
    assert ["jax", "0.0.1", jax.__version__] in lines
    assert any(line[:4] == ["images", "are", "normalized", "by"] for line in lines)
