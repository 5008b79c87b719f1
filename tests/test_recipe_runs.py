"""Recipes through whole runs, from the command line to what is tested."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import small_inputs
from small_network import Net

import importers
from train import Config
from train.__main__ import main
from train.datasets import load_dataset
from train.linen_target import linen_target
from train.resolve import resolve
from train.step import Task, make_eval_step

pytestmark = pytest.mark.filterwarnings("ignore::tlv_jax.SimilarityWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small folder of pictures, and a source with random weights."""
    folder = tmp_path_factory.mktemp("recipes")
    return small_inputs.save_inputs(folder)


def command(folder, name, *options):
    return [
        *("--source", "squeezenet1_1", "--source-weights", str(folder / "source.safetensors")),
        *("--target", "small_network:Net", "--dataset", "folder", "--no-baseline"),
        *("--data-dir", str(folder / "pictures"), "--image-size", "32", "--batch-size", "8"),
        *("--out", str(folder / "runs"), "--name", name, "--epochs", "2", *options),
    ]


MODERN = (
    *("--recipe", "modern", "--recipe.optimizer", "sgd", "--recipe.nesterov", "True"),
    *("--recipe.clip-norm", "1", "--recipe.accumulate", "2", "--recipe.freeze", "^conv/"),
    *("--recipe.rates", "dense=2", "norm=0.5", "--recipe.mixup", "0.2", "--recipe.cutmix", "1"),
    *("--recipe.crossover-schedule", "linear", "--recipe.crossover-mask", "batch"),
    *("--learning-rate", "0.05"),
)


@pytest.fixture(scope="module")
def finished(folder):
    assert main(command(folder, "modern", *MODERN)) == 0
    return folder / "runs" / "modern"


def test_every_part_of_a_recipe_is_chosen_on_the_command_line(finished):
    recipe = json.loads((finished / "config.json").read_text())["recipe"]
    assert (recipe["name"], recipe["optimizer"], recipe["ema"]) == ("modern", "sgd", None)
    assert (recipe["freeze"], recipe["rates"]) == (["^conv/"], ["dense=2", "norm=0.5"])
    lines = (finished / "transferred" / "metrics.jsonl").read_text().splitlines()
    assert all(np.isfinite(list(json.loads(line).values())).all() for line in lines)


def test_the_averaged_weights_are_tested(finished, folder):
    (result,) = json.loads((finished / "results.json").read_text())
    checkpoints = finished / "checkpoints" / "transferred"
    with ocp.CheckpointManager(checkpoints, item_names=("state", "progress")) as manager:
        steps_of_an_epoch = max(manager.all_steps()) // 2
        step = result["best_epoch"] * steps_of_an_epoch
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore())
        state = manager.restore(step, args=arguments).state
    config = Config(dataset="folder", data_dir=folder / "pictures", image_size=32)
    tested = jax.tree.map(jnp.asarray, load_dataset(resolve(config)).test)
    source = importers.load("squeezenet1_1", folder / "source.safetensors")
    target = linen_target(Net(), jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    mean, std = source.preprocess.mean, source.preprocess.std
    evaluate = make_eval_step(Task(target, mean, std, jnp.dtype("float32")))
    rows = jnp.arange(len(tested))
    losses = [
        float(evaluate(params, state["model_state"], rows, rows >= 0, tested).loss) / len(rows)
        for params in (state["average"], state["params"])
    ]
    assert result["test"]["loss"] == pytest.approx(losses[0], rel=1e-5)
    assert result["test"]["loss"] != pytest.approx(losses[1], rel=1e-3)
    chex.assert_trees_all_equal(state["average"]["conv"], state["params"]["conv"])  # frozen


def test_a_run_is_resumed_by_the_same_recipe_alone(finished, folder, capsys):
    assert main(command(folder, "modern", *MODERN, "--resume")) == 0
    assert main(command(folder, "modern", *MODERN, "--recipe.ema", "0", "--resume")) == 1
    assert "was started with recipe.ema=None" in capsys.readouterr().err


def test_what_is_frozen_is_told(folder, capsys):
    options = "--epochs", "1", "--recipe.freeze", "^conv/", "--crossover-rate", "0"
    assert main(command(folder, "frozen", *options)) == 0
    assert "\nfrozen: conv/bias, conv/kernel\n" in capsys.readouterr().out


def test_a_pattern_that_is_found_nowhere_is_refused_before_there_is_a_run(folder, capsys):
    assert main(command(folder, "misspelt", "--recipe.freeze", "cnov")) == 1
    assert "'cnov' is found in the path of no parameter" in capsys.readouterr().err
    assert not (folder / "runs" / "misspelt").exists()
