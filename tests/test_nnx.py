"""A loaded network as a Flax NNX module: it computes, trains and is transferred as in Linen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import small_inputs
import trees
from flax import nnx
from small_models import SMALL_MODELS

import importers
import tlv_jax
from importers.nnx_network import NNXNetwork
from tlv_jax import models
from tlv_jax.errors import OptionError, ParameterTreeError
from tlv_jax.models import mobilenet_v2, resnet

CONFIG = resnet.ResNetConfig((1, 1, 1, 1), bottleneck=False)
SMALL = models.ResNet(CONFIG, num_classes=5)
# With dropout before its last layer.
DROPPING = models.MobileNetV2(
    mobilenet_v2.MobileNetV2Config((mobilenet_v2.StageConfig(1, 8, repeats=1, stride=1),)),
    num_classes=5,
)
IMAGES = np.random.default_rng(0).standard_normal((4, 32, 32, 3), np.float32)


def pretrained(model, seed=0):
    variables = trees.random_variables(models.abstract_variables(model), seed)
    statistics = variables.get("batch_stats", {})
    return importers.Pretrained(model, variables["params"], statistics, None, categories=())


@pytest.fixture(scope="module")
def linen():
    """One Linen network, and what it computes of the images in both modes."""
    own = pretrained(SMALL)
    update = jax.jit(lambda v, x: SMALL.apply(v, x, train=True, mutable=["batch_stats"]))
    return own, jax.jit(SMALL.apply)(own.variables, IMAGES), update(own.variables, IMAGES)


@nnx.jit
def forward(module, images):
    return module(images)


@nnx.jit
def step(module, optimizer, images, labels):
    def loss(module):
        logits = module(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, gradients = nnx.value_and_grad(loss)(module)
    optimizer.update(module, gradients)
    return value


def test_it_computes_the_same_in_evaluation(linen):
    own, logits, _ = linen
    module = own.to_nnx()
    np.testing.assert_allclose(forward(module, IMAGES), logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(
        module.batch_stats["bn1"]["mean"][...], own.batch_stats["bn1"]["mean"]
    )


def test_training_normalizes_by_the_batch_and_updates_the_statistics_in_place(linen):
    own, evaluated, (logits, updated) = linen
    module = own.to_nnx()
    module.train()
    np.testing.assert_allclose(forward(module, IMAGES), logits, rtol=1e-4, atol=1e-4)
    expected = updated["batch_stats"]["layer4.0"]["bn1"]["var"]
    np.testing.assert_allclose(module.batch_stats["layer4.0"]["bn1"]["var"][...], expected, 1e-4)
    module.eval()
    assert not np.allclose(forward(module, IMAGES), evaluated)  # the new statistics count


def test_features_and_head_are_the_parts_of_a_call(linen):
    own, logits, _ = linen
    module = own.to_nnx()
    features = nnx.jit(lambda module, images: module.features(images))(module, IMAGES)
    assert features.shape == (4, 512)
    np.testing.assert_allclose(module.head(features), logits, rtol=1e-5, atol=1e-5)


def test_it_learns_with_optax_and_leaves_the_loaded_arrays_alone():
    own = pretrained(DROPPING)
    before = jax.tree.map(np.copy, own.variables)
    module = own.to_nnx()
    module.train()
    optimizer = nnx.Optimizer(module, optax.adam(1e-2), wrt=nnx.Param)
    losses = [float(step(module, optimizer, IMAGES, jnp.arange(4))) for _ in range(30)]
    assert losses[-1] < losses[0] / 2
    same = jax.tree.map(np.array_equal, module.variables, before)
    assert not any(jax.tree.leaves(same["batch_stats"]))
    assert not same["params"]["features.0.0"]["kernel"]
    jax.tree.map(np.testing.assert_array_equal, own.variables, before)


def test_dropout_draws_anew_in_each_call_from_the_given_keys():
    own = pretrained(DROPPING)
    features = np.ones((4, 1280), np.float32)

    def two(seed):
        module = own.to_nnx(nnx.Rngs(dropout=seed))
        module.train()
        return [np.asarray(module.head(features)) for _ in range(2)]

    first, second = two(0)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(two(0), [first, second])
    assert not np.array_equal(two(1)[0], first)
    quiet = own.to_nnx()
    np.testing.assert_array_equal(quiet.head(features), quiet.head(features))


def test_split_and_merge_keep_the_network_and_its_mode(linen):
    own, logits, (trained, _) = linen
    module = own.to_nnx()
    graph, params, others = nnx.split(module, nnx.Param, ...)
    assert len(jax.tree.leaves(params)) == len(jax.tree.leaves(own.params))
    np.testing.assert_allclose(
        forward(nnx.merge(graph, params, others), IMAGES), logits, 1e-5, 1e-5
    )
    module.train()
    merged = nnx.merge(*nnx.split(module))
    np.testing.assert_allclose(forward(merged, IMAGES), trained, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not hasattr(nnx, "view"), reason="an older flax, without nnx.view")
def test_a_view_evaluates_while_the_module_trains(linen):
    own, logits, _ = linen
    module = own.to_nnx()
    module.train()
    view = nnx.view(module, deterministic=True, use_running_average=True)
    np.testing.assert_allclose(forward(view, IMAGES), logits, rtol=1e-5, atol=1e-5)
    assert not module.deterministic


def test_a_mode_of_the_norms_alone_is_refused(linen):
    module = linen[0].to_nnx()
    module.set_attributes(deterministic=False)
    with pytest.raises(OptionError, match=r"deterministic=False.*module\.train\(\)"):
        module(IMAGES)


def test_variables_go_in_from_linen_and_back(linen):
    own, logits, _ = linen
    module = pretrained(SMALL, seed=1).to_nnx()
    module.load(own.variables)
    np.testing.assert_allclose(forward(module, IMAGES), logits, rtol=1e-5, atol=1e-5)
    back = module.variables
    assert jax.tree.structure(back) == jax.tree.structure(own.variables)
    jax.tree.map(np.testing.assert_array_equal, back, own.variables)


def test_checkpoints_of_linen_go_in_and_back(tmp_path):
    path = small_inputs.save_source(tmp_path / "source.safetensors")
    own = importers.load("squeezenet1_1", path)
    module = own.to_nnx()
    importers.write_safetensors(tmp_path / "back", "squeezenet1_1", module.variables["params"], {})
    again = importers.load("squeezenet1_1", tmp_path / "back")
    jax.tree.map(np.testing.assert_array_equal, again.variables, own.variables)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", jax.tree.map(jnp.negative, own.variables))
        checkpointer.wait_until_finished()
        module.load(checkpointer.restore(tmp_path / "orbax"))
    jax.tree.map(
        np.testing.assert_array_equal, module.variables, jax.tree.map(np.negative, own.variables)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: {"params": v["params"]}, r"'batch_stats/bn1/mean' is missing"),
        (lambda v: {**v, "ema": {"x": np.ones(1)}}, r"'ema/x' is not one of them"),
        (
            lambda v: {
                **v,
                "params": {**v["params"], "fc": {"kernel": np.ones((512, 7)), "bias": np.ones(5)}},
            },
            r"'params/fc/kernel' of shape \(512, 5\), got \(512, 7\)",
        ),
    ],
    ids=["missing", "in excess", "shape"],
)
def test_variables_of_another_network_are_refused_and_nothing_is_written(linen, change, message):
    module = pretrained(SMALL, seed=1).to_nnx()
    before = module.variables
    with pytest.raises(ParameterTreeError, match=message):
        module.load(change(linen[0].variables))
    jax.tree.map(np.testing.assert_array_equal, module.variables, before)


def test_it_is_traced_and_transferred_as_the_linen_network(linen):
    own, *_ = linen
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    module = pretrained(SMALL, seed=1).to_nnx()
    target = tlv_jax.trace(lambda module, images: module(images), module, image)
    source = tlv_jax.trace(SMALL.apply, own.variables, image)
    assert target.layers == source.layers
    assert target.channels == source.channels
    new = tlv_jax.transfer(source, target)
    assert type(new) is NNXNetwork
    kernel = new.params["layer3.0"]["conv2"]["kernel"][...]
    np.testing.assert_array_equal(kernel, own.params["layer3.0"]["conv2"]["kernel"])
    out_of = tlv_jax.transfer(target, source)
    np.testing.assert_array_equal(
        out_of["params"]["conv1"]["kernel"], module.params["conv1"]["kernel"][...]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_MODELS)
def test_a_network_of_each_family_computes_as_in_linen(name):
    model = SMALL_MODELS[name]
    if name == "inception_v3":
        model = model.clone(aux_logits=False)  # which takes images of 299 pixels
    own = pretrained(model)
    side = getattr(model, "image_size", 96)
    images = np.random.default_rng(0).standard_normal((2, side, side, 3), np.float32)
    module = own.to_nnx()
    logits = jax.jit(model.apply)(own.variables, images)
    np.testing.assert_allclose(forward(module, images), logits, rtol=1e-4, atol=1e-4)
    module.train()
    trained = forward(module, images)
    assert np.isfinite(getattr(trained, "logits", trained)).all()
    assert int(module.dropout.count[...]) == 1
