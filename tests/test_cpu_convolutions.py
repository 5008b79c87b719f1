"""The transformed function is the function: values, gradients, and everything around them."""

import chex
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import tlv_jax
from tests.helpers import relative_error, value_and_gradients

IMAGES = 0.1 * jax.random.normal(jax.random.key(1), (2, 5, 4, 6))
DEPTHWISE = jax.random.normal(jax.random.key(2), (3, 3, 1, 6))
POINTWISE = jax.random.normal(jax.random.key(3), (1, 1, 6, 6))
GROUPED = jax.random.normal(jax.random.key(4), (3, 3, 2, 6))


def depthwise(images, kernel, padding="SAME", strides=(1, 1)):
    return lax.conv_general_dilated(
        images,
        kernel,
        strides,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=images.shape[-1] // kernel.shape[2],
    )


def convolutions(fn, *args):
    """How many convolutions of XLA's own a function's program has."""
    return str(jax.make_jaxpr(fn)(*args)).count("conv_general_dilated[")


def assert_same(fn, *args, rtol=1e-5):
    """Checks the function's value, and its gradients for all arguments."""
    expected = jax.jit(lambda *args: value_and_gradients(fn, *args))(*args)
    faster = tlv_jax.cpu_convolutions(fn)
    actual = jax.jit(lambda *args: value_and_gradients(faster, *args))(*args)
    for name, new, old in zip(
        ("value", *map(str, range(len(args)))), actual, expected, strict=True
    ):
        assert new.dtype == old.dtype
        assert relative_error(new, old) <= rtol, name


@pytest.mark.parametrize(
    ("inputs", "kernel", "kept"),
    [
        ((2, 8, 8, 6), (3, 3, 1, 6), 0),
        ((2, 8, 8, 6), (7, 7, 1, 6), 0),
        ((2, 8, 8, 6), (3, 3, 1, 12), 0),
        ((2, 8, 8, 6), (1, 1, 6, 4), 0),
        ((2, 2, 2, 6), (3, 3, 6, 4), 0),
        ((2, 8, 8, 6), (3, 3, 6, 4), 1),
        ((2, 8, 8, 6), (3, 3, 3, 4), 1),  # one block for both groups
        ((2, 4, 4, 512), (3, 3, 16, 64), 4),  # blocks of 128 channels
        ((2, 8, 8, 3), (16, 16, 3, 4), 1),  # too many places
    ],
)
def test_the_form_depends_on_the_shapes(key, inputs, kernel, kept):
    operands = jax.random.normal(key, inputs), jax.random.normal(key, kernel)
    fn = tlv_jax.cpu_convolutions(depthwise)
    assert convolutions(fn, *operands) == kept
    assert_same(depthwise, *operands)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("kernel", [DEPTHWISE, POINTWISE, GROUPED])
def test_narrow_dtypes_are_kept_and_summed_in_float32(dtype, kernel):
    images, kernel = IMAGES.astype(dtype), kernel.astype(dtype)
    actual = tlv_jax.cpu_convolutions(depthwise)(images, kernel)
    exact = depthwise(images.astype(jnp.float32), kernel.astype(jnp.float32))
    assert actual.dtype == dtype
    assert relative_error(actual, exact) < jnp.finfo(dtype).eps


def test_integers_are_left_alone():
    images, kernel = jnp.ones((2, 4, 4, 6), jnp.int32), jnp.ones((3, 3, 1, 6), jnp.int32)
    fn = tlv_jax.cpu_convolutions(depthwise)
    assert convolutions(fn, images, kernel) == 1
    chex.assert_trees_all_equal(fn(images, kernel), depthwise(images, kernel))


def in_jit(images, kernel):
    return jax.jit(depthwise)(images, kernel)


def in_remat(images, kernel):
    return jax.checkpoint(lambda images: jnp.sin(depthwise(images, kernel)))(images)


def in_scan(images, kernel):
    kernels = jnp.stack([kernel, 0.5 * kernel])
    return lax.scan(lambda x, kernel: (jnp.tanh(depthwise(x, kernel)), None), images, kernels)[0]


def in_loop(images, kernel):
    return lax.fori_loop(0, 2, lambda _, x: depthwise(x, kernel), images)


def in_branch(images, kernel):
    return lax.cond(
        images[0, 0, 0, 0] > 0, depthwise, lambda x, k: 2 * depthwise(x, k), images, kernel
    )


def in_vmap(images, kernel):
    return jax.vmap(lambda image: depthwise(image[None], kernel)[0])(images)


def in_custom_jvp(images, kernel):
    @jax.custom_jvp
    def doubled(images, kernel):
        return depthwise(images, kernel)

    @doubled.defjvp
    def rule(primals, tangents):
        return doubled(*primals), 2 * tangents[0]

    return doubled(images, kernel)


def in_vjp_rule(images, kernel):
    @jax.custom_vjp
    def doubled(images, kernel):
        return depthwise(images, kernel)

    def forward(images, kernel):
        return doubled(images, kernel), kernel

    def backward(kernel, change):
        return depthwise(change, 2 * kernel), jnp.zeros_like(kernel)

    doubled.defvjp(forward, backward)
    return doubled(images, kernel)


EVERYWHERE = [
    in_jit,
    in_remat,
    in_scan,
    in_loop,
    in_branch,
    in_vmap,
    in_custom_jvp,
    in_vjp_rule,
]


@pytest.mark.parametrize("fn", EVERYWHERE)
def test_convolutions_are_found_wherever_they_are(fn):
    faster = tlv_jax.cpu_convolutions(fn)
    assert convolutions(fn, IMAGES, DEPTHWISE)
    assert not convolutions(faster, IMAGES, DEPTHWISE)
    assert_same(fn, IMAGES, DEPTHWISE)


@pytest.mark.parametrize("fn", EVERYWHERE)
def test_gradients_are_fast_wherever_they_are(fn):
    def loss(fn):
        return lambda *args: (fn(*args) ** 2).sum()

    faster = jax.grad(loss(tlv_jax.cpu_convolutions(fn)), (0, 1))
    assert convolutions(jax.grad(loss(fn), (0, 1)), IMAGES, DEPTHWISE)
    assert not convolutions(faster, IMAGES, DEPTHWISE)


def test_a_rule_of_forward_mode_that_convolves_is_transposed():
    @jax.custom_jvp
    def doubled(images):
        return depthwise(images, DEPTHWISE)

    @doubled.defjvp
    def rule(primals, tangents):
        return doubled(*primals), 2 * depthwise(*tangents, DEPTHWISE)

    assert_same(doubled, IMAGES)


def test_a_custom_rule_may_hold_arrays():
    @jax.custom_vjp
    def doubled(images):
        return depthwise(images, DEPTHWISE)

    def backward(_, change):
        return (depthwise(change, 2 * DEPTHWISE),)

    doubled.defvjp(lambda images: (doubled(images), None), backward)
    assert_same(doubled, IMAGES)


def test_arrays_may_come_from_outside_the_function():
    def loss(wrap):
        def of_kernel(kernel):
            return (wrap(lambda images: depthwise(images, kernel))(IMAGES) ** 2).sum()

        return jax.grad(of_kernel)

    faster = loss(tlv_jax.cpu_convolutions)
    assert not convolutions(faster, DEPTHWISE)
    chex.assert_trees_all_close(faster(DEPTHWISE), loss(lambda fn: fn)(DEPTHWISE), rtol=1e-5)


@pytest.mark.parametrize("kernel", [DEPTHWISE, POINTWISE, GROUPED])
def test_it_composes_with_vmap(kernel):
    kernels = jnp.stack([kernel, -kernel])
    expected = jax.vmap(depthwise, (None, 0))(IMAGES, kernels)
    actual = jax.vmap(tlv_jax.cpu_convolutions(depthwise), (None, 0))(IMAGES, kernels)
    outside = tlv_jax.cpu_convolutions(jax.vmap(depthwise, (None, 0)))(IMAGES, kernels)
    chex.assert_trees_all_close((actual, outside), (expected, expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", [DEPTHWISE, POINTWISE, GROUPED, jnp.ones((5, 5, 1, 6))])
def test_second_derivatives(kernel):
    def sharpness(fn):
        def loss(images, kernel):
            return jnp.sin(fn(images, kernel)).sum()

        def norm(images, kernel):
            return sum(jnp.vdot(each, each) for each in jax.grad(loss, (0, 1))(images, kernel))

        return jax.jit(jax.grad(norm, (0, 1)))(IMAGES, kernel)

    chex.assert_trees_all_close(
        sharpness(tlv_jax.cpu_convolutions(depthwise)), sharpness(depthwise), rtol=1e-4, atol=1e-4
    )


def test_forward_mode_is_refused_where_it_has_no_rule():
    fn = tlv_jax.cpu_convolutions(depthwise)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(fn, (IMAGES, DEPTHWISE), (IMAGES, DEPTHWISE))
    tangents = jax.jvp(fn, (IMAGES, GROUPED), (IMAGES, GROUPED))
    chex.assert_trees_all_close(
        tangents, jax.jvp(depthwise, (IMAGES, GROUPED), (IMAGES, GROUPED)), rtol=1e-5, atol=1e-6
    )


def test_it_keeps_a_batch_sharded():
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    fn = jax.jit(tlv_jax.cpu_convolutions(depthwise))
    result = fn(jax.device_put(IMAGES, rows), DEPTHWISE)
    assert result.sharding.is_equivalent_to(rows, result.ndim)
    chex.assert_trees_all_close(result, depthwise(IMAGES, DEPTHWISE), rtol=1e-5, atol=1e-6)


def test_it_works_in_shard_map():
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    rows, all_of_it = PartitionSpec("data"), PartitionSpec()

    def sharded(fn):
        return jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=(rows, all_of_it), out_specs=rows))

    expected = depthwise(IMAGES, DEPTHWISE)
    inside = sharded(tlv_jax.cpu_convolutions(depthwise))(IMAGES, DEPTHWISE)
    outside = tlv_jax.cpu_convolutions(sharded(depthwise))(IMAGES, DEPTHWISE)
    chex.assert_trees_all_close((inside, outside), (expected, expected), rtol=1e-5, atol=1e-6)


def test_arguments_and_results_of_any_kind():
    def fn(trees, *, activation, padding, scale=None):
        result = activation(depthwise(trees["images"], trees["kernel"], padding))
        return {"result": result, "name": "depthwise", "scale": scale}

    trees = {"images": IMAGES, "kernel": np.asarray(DEPTHWISE)}
    settings = {"activation": jnp.tanh, "padding": "VALID"}
    actual = tlv_jax.cpu_convolutions(fn)(trees, **settings)
    expected = fn(trees, **settings)
    chex.assert_trees_all_close(actual.pop("result"), expected.pop("result"), rtol=1e-5)
    assert actual == expected


def test_a_function_that_changes_its_arguments_is_refused():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(6, rngs=rngs)

        def __call__(self, images):
            return self.norm(depthwise(images, DEPTHWISE))

    with pytest.raises(tlv_jax.OptionError, match=r"changes its arguments in place.*nnx\.split"):
        tlv_jax.cpu_convolutions(lambda net, images: net(images))(Net(nnx.Rngs(0)), IMAGES)


def test_a_rule_that_refuses_does_so_where_it_is_used():
    @jax.custom_vjp
    def refusing(images):
        return depthwise(images, DEPTHWISE)

    def forward(images):
        raise NotImplementedError("no gradient")

    refusing.defvjp(forward, lambda residuals, change: (change,))
    fn = tlv_jax.cpu_convolutions(refusing)
    chex.assert_trees_all_close(fn(IMAGES), depthwise(IMAGES, DEPTHWISE), rtol=1e-5, atol=1e-6)
    with pytest.raises(NotImplementedError, match="no gradient"):
        jax.grad(lambda images: fn(images).sum())(IMAGES)


def test_on_other_platforms_the_function_itself_comes_back(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert tlv_jax.cpu_convolutions(depthwise) is depthwise
