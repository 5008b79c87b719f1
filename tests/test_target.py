import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from small_network import Net

from tlv_jax.errors import OptionError
from train.errors import ConfigError
from train.target import create_target, initialize

IMAGES = jnp.zeros((1, 16, 16, 3))


def build(name):
    model = create_target(name, num_classes=5, dtype=jnp.float32)
    return model, initialize(name, model, jax.random.key(0), IMAGES, num_classes=5)


def test_an_architecture_is_built_by_its_name():
    model = create_target("resnet18", num_classes=5, dtype=jnp.bfloat16)
    assert (model.num_classes, model.dtype) == (5, jnp.bfloat16)


def test_a_user_s_own_module_is_built_by_its_import_path():
    model, variables = build("small_network:Net")
    assert model == Net(num_classes=5, dtype=jnp.float32)
    assert set(variables) == {"params", "batch_stats"}
    assert model.apply(variables, IMAGES).shape == (1, 5)


class NoHead(nn.Module):
    def features(self, images, *, train=False):
        return images.mean((1, 2))


class TwoClasses(nn.Module):
    @nn.compact
    def __call__(self, images, *, train=False):
        return nn.Dense(2)(self.features(images))

    def features(self, images, *, train=False):
        return images.mean((1, 2))

    def head(self, features, *, train=False):
        return features


class NeverTrains(TwoClasses):
    num_classes: int = 2

    def features(self, images):
        return images.mean((1, 2))


class NeedsWidth(TwoClasses):
    width: int


class Caches(TwoClasses):
    num_classes: int = 2

    @nn.compact
    def __call__(self, images, *, train=False):
        self.variable("cache", "seen", jnp.zeros, (1,))
        return nn.Dense(self.num_classes)(self.features(images))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("resnet19", OptionError, "resnet18"),
        ("nowhere:Net", ConfigError, "No module named 'nowhere'"),
        ("small_network:Ned", ConfigError, "no attribute 'Ned'"),
        (":Net", ConfigError, "package.module:Class"),
        ("jax:Array", ConfigError, r"expected a flax\.linen\.Module"),
        ("test_target:NoHead", ConfigError, r"no method head\. A target needs"),
        ("test_target:NeedsWidth", ConfigError, "Give every field .* a default"),
        ("test_target:NeverTrains", ConfigError, r"'train'.* A target needs"),
        ("test_target:TwoClasses", ConfigError, "add a field num_classes"),
        ("test_target:Caches", ConfigError, r"variables of the kinds \['cache'\]"),
    ],
)
def test_what_cannot_be_trained_is_refused(name, error, message):
    with pytest.raises(error, match=message):
        build(name)
