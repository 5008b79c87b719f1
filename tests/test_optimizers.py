"""A bare tree that holds more than parameters: optimizer states and moving averages."""

import flax.nnx as nnx
import flax.serialization
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
from flax.training.train_state import TrainState

import tlv_jax

pytestmark = pytest.mark.filterwarnings("ignore::tlv_jax.UnknownOrderWarning")

OPTIMIZERS = {
    "adafactor": optax.adafactor(1e-3),
    "adam": optax.adam(1e-3),
    "ademamix": optax.contrib.ademamix(1e-3),
    "averaged gradients": optax.ema(0.9),
    "chained": optax.chain(optax.clip(1.0), optax.adamw(1e-3)),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "lion": optax.lion(1e-3),
    "masked": optax.masked(optax.adam(1e-3), lambda params: jax.tree.map(lambda _: True, params)),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "partitioned": optax.partition(
        {"all": optax.adam(1e-3)}, lambda params: jax.tree.map(lambda _: "all", params)
    ),
    "prodigy": optax.contrib.prodigy(),
    "rmsprop": optax.rmsprop(1e-3),
    "several steps": optax.MultiSteps(optax.sgd(0.1, momentum=0.9), 2),
    "skipping": optax.apply_if_finite(optax.adam(1e-3), 3),
}


def convs(seed):
    keys = jax.random.split(jax.random.key(seed))
    kernels = [jax.random.normal(key, (3, 3, 4, 4)) for key in keys]
    return {name: {"kernel": kernel} for name, kernel in zip("ab", kernels, strict=True)}


PARAMS, SOURCE = convs(0), convs(1)
FORMS = {
    "beside": lambda state: {"params": PARAMS, "optimizer": state},
    "in a tuple": lambda state: (PARAMS, state),
    "alone": lambda state: state,
    "without its classes": lambda state: {
        "params": PARAMS,
        "optimizer": flax.serialization.to_state_dict(state),
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_any_optimizer_is_refused(name, form):
    tree = FORMS[form](OPTIMIZERS[name].init(PARAMS))
    for src, dst, side in ((SOURCE, tree, "dst"), (tree, SOURCE, "src")):
        with pytest.raises(
            tlv_jax.ParameterTreeError, match=rf"^{side}: '.*kernel'.*optimizer.*state\.params"
        ):
            tlv_jax.transfer(src, dst)


def test_the_states_of_trainers_are_refused_and_their_parameters_are_not():
    optimizer = optax.adam(1e-3)
    linen = TrainState.create(apply_fn=len, params=PARAMS, tx=optimizer)
    conv = nnx.Conv(4, 4, (3, 3), rngs=nnx.Rngs(0))
    flax_nnx = nnx.Optimizer(conv, optimizer, wrt=nnx.Param)
    for state in (linen, flax_nnx, nnx.state(flax_nnx), {"model": conv, "optimizer": flax_nnx}):
        with pytest.raises(tlv_jax.ParameterTreeError, match=r"'.*mu.*kernel'"):
            tlv_jax.transfer(SOURCE, state)
    for params in (linen.params, nnx.state(conv)):
        tlv_jax.transfer(SOURCE, params)


def test_a_state_that_orbax_restored_is_refused(tmp_path):
    state = {"params": PARAMS, "opt": optax.adam(1e-3).init(PARAMS)}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state")
    with pytest.raises(tlv_jax.ParameterTreeError, match="'opt/0/mu/a/kernel'"):
        tlv_jax.transfer(SOURCE, restored)


@pytest.mark.parametrize("words", [("mu", "logvar"), ("trace", "head"), ("nu", "b")])
def test_modules_may_be_called_as_moments_are(words):
    tree = dict(zip(words, convs(2).values(), strict=True))
    assert len(tlv_jax.plan_transfer(SOURCE, tree).pairs) == 2


@pytest.mark.parametrize("name", ["ema_params", "params_ema", "swa", "averaged_params"])
def test_moving_averages_are_left_alone(name):
    state = {"params": PARAMS, name: convs(2)}
    new = tlv_jax.transfer(SOURCE, state)
    assert new[name] is state[name] or jax.tree.all(
        jax.tree.map(lambda one, other: one is other, new[name], state[name])
    )
    assert not jnp.array_equal(new["params"]["a"]["kernel"], PARAMS["a"]["kernel"])
    assert tlv_jax.plan_transfer(state, PARAMS).pairs == (("params/a", "a"), ("params/b", "b"))


def test_a_network_that_is_an_average_is_a_network():
    assert tlv_jax.plan_transfer({"ema_params": PARAMS}, SOURCE).pairs[0][0] == "ema_params/a"
