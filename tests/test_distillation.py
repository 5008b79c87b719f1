"""The source teaches in training: the loss, a step with it, and whole runs."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import small_inputs
from small_network import Net

from train.__main__ import main
from train.config import Config, DistillOptions, MethodOptions
from train.data import LabelledImages
from train.distillation import Distillation, distillation_of, teaching_loss
from train.errors import ConfigError
from train.linen_target import linen_target
from train.optimizer import make_optimizer
from train.probe import Linear
from train.recipe import Recipe
from train.resolve import resolve
from train.step import Task, initial_state, make_train_step
from train.support import Lent, Support

GENERATOR = np.random.default_rng(0)


def test_the_loss_is_hintons():
    student, teacher = GENERATOR.normal(size=(2, 5, 3)).astype(np.float32)
    own, taught = (scipy.special.log_softmax(each / 3, axis=1) for each in (student, teacher))
    expected = 2 * 9 * np.sum(np.exp(taught) * (taught - own), axis=1)
    found = teaching_loss(Distillation(2.0, 3.0), jnp.asarray(teacher), jnp.asarray(student))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("rate", [0.0, 1.0], ids=["alone", "with crossover"])
def test_a_step_descends_the_losses_of_the_labels_and_of_the_teacher(key, rate):
    pixels = GENERATOR.integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
    images = LabelledImages(jnp.asarray(pixels), jnp.arange(8) % 2)
    target = linen_target(Net(), key, jnp.zeros((1, 8, 8, 3)))
    task = Task(target, (0.5,) * 3, (0.5,) * 3, jnp.dtype("float32"))
    lender = Net(width=5)
    variables = lender.init(jax.random.key(1), jnp.zeros((1, 8, 8, 3)))
    linear = Linear(jnp.asarray(GENERATOR.normal(size=(5, 2)), jnp.float32), jnp.array([1.0, -1]))
    how = Distillation(weight=0.5, temperature=2.0)
    recipe = Recipe(optimizer="sgd", momentum=0.0, crop="none", flip=0.0)
    optimizer = make_optimizer(1.0, 0.0, 10, recipe)
    state = initial_state(*target.split(target.network.params), optimizer, recipe)
    step = jax.jit(make_train_step(task, optimizer, Support(lender, rate, how), recipe))
    after, _ = step(state, key, jnp.arange(8), images, Lent(variables, linear))

    def loss(params):
        seen = pixels / np.float32(255) * 2 - 1
        lent = lender.apply(variables, seen, method="features")

        def change(features):
            return jnp.concatenate([lent, features[:, 5:]], axis=1) if rate else features

        logits, _ = target.train(params, state.model_state, seen, key, change)
        taught = jax.nn.softmax((lent @ linear.weights + linear.bias[None]) / 2)
        softened = optax.losses.softmax_cross_entropy(logits / 2, taught)
        plain = optax.losses.softmax_cross_entropy_with_integer_labels(logits, images.labels)
        return (plain + 0.5 * 4 * softened).mean()  # less the teacher's entropy, a constant

    expected = jax.tree.map(jnp.subtract, state.params, jax.jit(jax.grad(loss))(state.params))
    chex.assert_trees_all_close(after.params, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distillation")
    return small_inputs.save_inputs(folder)


def run(folder, name, *options, first="transferred"):
    """The records of a run's epochs, by training."""
    arguments = [
        *("--source", "squeezenet1_1", "--source-weights", str(folder / "source.safetensors")),
        *("--target", "small_network:Net", "--dataset", "folder", "--crossover-rate", "0"),
        *("--data-dir", str(folder / "pictures"), "--image-size", "32", "--batch-size", "8"),
        *("--out", str(folder / "runs"), "--name", name, "--epochs", "1", *options),
    ]
    assert main(arguments) == 0
    return {
        training: json.loads((folder / "runs" / name / training / "metrics.jsonl").read_text())
        for training in (first, "he")
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::tlv_jax.SimilarityWarning")
def test_a_run_is_taught_and_its_twin_is_not(folder, capsys):
    taught = run(folder, "taught", "--distill", "logits", "--distill.temperature", "2")
    printed = capsys.readouterr().out
    assert "teacher: a linear classifier on the source's features, balanced accuracy 1.000" in (
        printed
    )
    plain = run(folder, "plain")
    assert taught["he"] == plain["he"]
    assert taught["transferred"]["train_loss"] != plain["transferred"]["train_loss"]
    settings = json.loads((folder / "runs" / "taught" / "config.json").read_text())
    assert settings["distill"] == {"name": "logits", "weight": 1.0, "temperature": 2.0}


@pytest.mark.slow
def test_the_source_teaches_what_got_no_transfer_from_streamed_pictures_too(folder):
    alone = "--distill", "logits", "--method", "none"
    resident = run(folder, "resident", *alone, first="he+distill")
    assert resident["he+distill"] != resident["he"]
    assert run(folder, "streamed", *alone, "--stream", first="he+distill") == resident


@pytest.mark.parametrize(
    "changes",
    [
        {"method": MethodOptions("none")},
        {"source": ("squeezenet1_1", "resnet18"), "source_weights": None},
    ],
)
def test_hints_need_one_plan_of_one_source(changes):
    config = Config(distill=DistillOptions("plan"), **changes)
    with pytest.raises(ConfigError, match="expected one source and a transfer"):
        resolve(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (DistillOptions("logits", temperature=0.0), r"temperature=0\.0, expected a number above"),
        (DistillOptions("logits", weight=-1.0), r"weight=-1\.0, expected a number above 0"),
        (DistillOptions(temperature=2.0), "does nothing for distill=none"),
    ],
)
def test_what_cannot_teach_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        distillation_of(options)
