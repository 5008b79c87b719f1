import flax.linen as nn
import jax
import numpy as np
import pytest
import torch

import tlv_jax
from tlv_jax.models import BatchNorm


class Network(nn.Module):
    @nn.compact
    def __call__(self, images, *, train=False):
        hidden = nn.relu(BatchNorm(momentum=0.1, name="first")(images, train=train))
        return BatchNorm(momentum=0.01, name="second")(hidden, train=train)


@pytest.mark.parametrize("count", [1, 3])
def test_statistics_are_those_of_torch_without_momentum(key, count):
    generator = np.random.default_rng(0)
    batches = [generator.normal(2, 3, (4, 5, 5, 6)).astype(np.float32) for _ in range(count)]
    model = Network()
    variables = model.init(key, batches[0])

    @jax.jit
    def update(statistics, images):
        tree = {"params": variables["params"], "batch_stats": statistics}
        return model.apply(tree, images, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    actual = tlv_jax.recompute_statistics(update, variables["batch_stats"], batches)
    norms = [torch.nn.BatchNorm2d(6, momentum=None) for _ in range(2)]
    network = torch.nn.Sequential(norms[0], torch.nn.ReLU(), norms[1])
    for images in batches:
        network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    for name, norm in zip(("first", "second"), norms, strict=True):
        np.testing.assert_allclose(actual[name]["mean"], norm.running_mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(actual[name]["var"], norm.running_var, rtol=1e-4)


def test_without_a_batch_it_is_an_error():
    with pytest.raises(tlv_jax.OptionError, match="at least one batch"):
        tlv_jax.recompute_statistics(lambda statistics, _: statistics, {}, [])
