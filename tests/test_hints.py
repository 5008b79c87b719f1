"""The target imitates activations of the source, at layers that the transfer's plan paired."""

import json

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_inputs

import tlv_jax
from train.__main__ import main
from train.data import LabelledImages
from train.distillation import Distillation
from train.errors import ConfigError
from train.hints import choose_hints, hint_loss, paired_convolutions
from train.linen_target import linen_target
from train.optimizer import make_optimizer
from train.recipe import Recipe
from train.step import Task, initial_state, make_train_step, with_adapter
from train.support import Adapter, Support

GENERATOR = np.random.default_rng(0)
ZEROS = jnp.zeros((1, 8, 8, 3))


class Stages(nn.Module):
    """Two convolutions at the full size, and one at half of it."""

    width: int = 4
    num_classes: int = 2

    def setup(self):
        self.first, self.second = (nn.Conv(self.width, (3, 3)) for _ in range(2))
        self.third = nn.Conv(2 * self.width, (3, 3), strides=2)
        self.dense = nn.Dense(self.num_classes)

    def features(self, images):
        return self.third(nn.relu(self.second(nn.relu(self.first(images))))).mean((1, 2))

    def head(self, features):
        return self.dense(features)

    def __call__(self, images):
        return self.head(self.features(images))


class Named(nn.Module):
    """The same without methods for its parts."""

    @nn.compact
    def __call__(self, images):
        return Stages(4, name="stages")(images)


def standardized(maps):
    return (maps - maps.mean((0, 1, 2))) / np.sqrt(maps.var((0, 1, 2)) + 1e-5)


def averaged(maps, cells):
    """By way of as many pixels as both grids divide."""
    size = maps.shape[1]
    fine = maps.repeat(cells, 1).repeat(cells, 2)
    return fine.reshape(len(maps), cells, size, cells, size, -1).mean((2, 4))


@pytest.mark.parametrize(("own", "given"), [(8, 4), (3, 5), (6, 6)])
def test_the_loss_compares_standardized_activations_on_the_smaller_grid(own, given):
    mine = GENERATOR.normal(2, 3, (4, own, own, 3)).astype(np.float32)
    theirs = GENERATOR.normal(-1, 5, (4, given, given, 2)).astype(np.float32)
    channels = GENERATOR.normal(size=(3, 2)).astype(np.float32)
    cells = min(own, given)
    left = standardized(averaged(mine, cells)) @ channels
    expected = np.mean((left - standardized(averaged(theirs, cells))) ** 2)
    assert float(hint_loss([mine], [theirs], [channels])) == pytest.approx(expected, rel=1e-4)


@pytest.fixture(scope="module")
def networks():
    target, lender = linen_target(Stages(4), jax.random.key(0), ZEROS), Stages(3)
    variables = lender.init(jax.random.key(1), ZEROS)
    plan = tlv_jax.plan_transfer(tlv_jax.trace(lender.apply, variables, ZEROS), target.network)
    return target, lender, variables, plan


PAIRS = (("params/second", "params/second"), ("params/third", "params/third"))


def shape(size, channels):
    return jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)


def test_the_last_pair_of_each_size_is_taken(networks):
    pairs = paired_convolutions(networks[-1])
    assert pairs == (("params/first", "params/first"), *PAIRS)
    own, given = [shape(8, 4), shape(8, 4), shape(4, 8)], [shape(8, 3), shape(8, 3), shape(4, 6)]
    assert choose_hints(pairs, own, given) == {PAIRS[0]: (4, 3), PAIRS[1]: (8, 6)}
    assert choose_hints(pairs, own, [*given[:2], None]) == {PAIRS[0]: (4, 3)}


def test_a_plan_without_activations_is_refused():
    with pytest.raises(ConfigError, match=r"no convolutions whose activations \[B, H, W, C\]"):
        choose_hints(PAIRS[:1], [shape(8, 4)], [None])
    with pytest.raises(ConfigError, match="Set distill=logits"):
        choose_hints((), [], [])


@pytest.mark.parametrize("rate", [0.0, 1.0], ids=["alone", "with crossover"])
def test_a_step_descends_the_losses_of_the_labels_and_of_the_hints(networks, rate):
    target, lender, variables, _ = networks
    pixels = GENERATOR.integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
    images = LabelledImages(jnp.asarray(pixels), jnp.arange(8) % 2)
    task = Task(target, (0.5,) * 3, (0.5,) * 3, jnp.dtype("float32"))
    recipe = Recipe(optimizer="sgd", momentum=0.0, crop="none", flip=0.0)
    optimizer = make_optimizer(1.0, 0.0, 10, recipe)
    maps = tuple(jnp.asarray(GENERATOR.normal(size=(4 * n, 3 * n)), jnp.float32) for n in (1, 2))
    state = initial_state(*target.split(target.network.params), optimizer, recipe)
    state = with_adapter(state, Adapter(hints=maps), optimizer)
    support = Support(lender, rate, Distillation(0.5, 4.0, PAIRS), optimizer)
    step = jax.jit(make_train_step(task, optimizer, support, recipe))
    after, _ = step(state, jax.random.key(0), jnp.arange(8), images, variables)
    seen = jnp.asarray(pixels / np.float32(255) * 2 - 1)

    def activations(model, variables):
        """As Flax captures them."""
        found = model.apply(variables, seen, capture_intermediates=True, mutable="intermediates")
        calls = found[1]["intermediates"]
        return [calls[name]["__call__"][0] for name in ("second", "third")]

    def loss(trained):
        params, maps = trained
        features = Stages(4).apply({"params": params}, seen, method="features")
        if rate:
            lent = lender.apply(variables, seen, method="features")
            features = jnp.concatenate([lent, features[:, 6:]], axis=1)
        logits = Stages(4).apply({"params": params}, features, method="head")
        plain = optax.losses.softmax_cross_entropy_with_integer_labels(logits, images.labels)
        own, given = activations(Stages(4), {"params": params}), activations(lender, variables)
        return plain.mean() + 0.5 * hint_loss(own, given, maps)

    trained = state.params, maps
    expected = jax.tree.map(jnp.subtract, trained, jax.jit(jax.grad(loss))(trained))
    found = after.params, after.adapter.hints
    chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-4)


def test_layers_within_modules_are_seen():
    target = linen_target(Named(), jax.random.key(0), ZEROS)
    params, state = target.split(target.network.params)
    change = jnp.zeros_like
    logits, _, seen = target.train_watched(
        *(params, state, ZEROS + 1, jax.random.key(0), change, ["params/stages/third"])
    )
    assert [each.shape for each in seen] == [(1, 4, 4, 8)]
    np.testing.assert_array_equal(logits, [params["stages"]["dense"]["bias"]])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::tlv_jax.SimilarityWarning")
def test_a_run_is_given_hints_and_a_module_of_nnx_is_refused(tmp_path, capsys):
    small_inputs.save_photographs(tmp_path / "pictures")
    small_inputs.save_source(tmp_path / "source.safetensors")

    def command(name, target):
        return [
            *(
                "--source",
                "squeezenet1_1",
                "--source-weights",
                str(tmp_path / "source.safetensors"),
            ),
            *("--target", target, "--dataset", "folder", "--distill", "plan"),
            *("--data-dir", str(tmp_path / "pictures"), "--image-size", "32", "--batch-size", "8"),
            *("--out", str(tmp_path / "runs"), "--name", name, "--epochs", "1"),
        ]

    assert main(command("linen", "test_hints:Stages")) == 0
    assert "hints: params/second imitates params/" in capsys.readouterr().out
    results = json.loads((tmp_path / "runs" / "linen" / "results.json").read_text())
    assert all(np.isfinite(result["test"]["loss"]) for result in results)
    assert main([*command("linen", "test_hints:Stages"), "--resume"]) == 0
    assert main(command("nnx", "test_target:OfNNX")) == 1
    assert "the activations of an NNX module cannot be had" in capsys.readouterr().err
