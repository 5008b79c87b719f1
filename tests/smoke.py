"""What a user does first, in a fresh installation: `python smoke.py WEIGHTS PAGE`.

WEIGHTS is a file of SqueezeNet 1.1, and PAGE the HTML page to write.
"""

import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp

import importers
import tlv_jax
import train


class Net(nn.Module):
    """A network of the user's own."""

    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(24, (3, 3), strides=2)(images))
        x = nn.relu(nn.Conv(40, (3, 3), strides=2)(x))
        return nn.Dense(4)(x.mean((1, 2)))


def main(weights, page):
    for package in (tlv_jax, importers, train):
        assert "site-packages" in package.__file__, package.__file__
    source = importers.load("squeezenet1_1", weights)
    images = jax.random.normal(jax.random.key(1), (8, 32, 32, 3))
    model = Net()
    variables = model.init(jax.random.key(0), images)
    target = tlv_jax.trace(model.apply, variables, images)
    plan = tlv_jax.plan_transfer(source.network, target)
    new = tlv_jax.apply_transfer(plan, jax.random.key(0), source.network, target)
    assert model.apply(new, images).shape == (8, 4)
    report = tlv_jax.report(plan, source.network, target, new)
    print(report)
    page.write_text(tlv_jax.html_report(report, plan, source.network, target), encoding="utf-8")
    fitted = tlv_jax.fit(source.network, target, images)
    assert jnp.isfinite(model.apply(fitted, images)).all()
    print(tlv_jax.fit_report(source.network, target, images, fitted))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
