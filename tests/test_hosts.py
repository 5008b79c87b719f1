"""Parameters that are divided over the devices of two hosts, here two processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HOST = """
import sys

import jax
import numpy as np

jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))

import trees
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import tlv_jax
from tlv_jax import methods

mesh = Mesh(np.array(jax.devices()), ("model",))
assert mesh.size == 4


def divided(leaf):
    parts = "model" if leaf.shape[-1] % 4 == 0 else None
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * (leaf.ndim - 1), parts))
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])


source, target = trees.small_network(0, 8, 16), trees.small_network(100, 12, 20)
src, dst = (jax.tree.map(divided, network.params) for network in (source, target))
key = jax.random.key(0)
for method in (methods.TLVFC, methods.DPIAT):
    plan = tlv_jax.plan_transfer(source, target, method)
    expected = trees.leaves(tlv_jax.apply_transfer(plan, key, source, target))
    for given, own in ((src, dst), (source, dst), (src, {**dst, "stem": target.params["stem"]})):
        new = tlv_jax.apply_transfer(plan, key, given, own)
        for path, leaf in trees.leaves(new).items():
            for shard in getattr(leaf, "addressable_shards", []):
                # Not bit for bit: pooled statistics are summed in another order.
                part = expected[path][shard.index]
                np.testing.assert_allclose(shard.data, part, rtol=1e-5, atol=1e-6)
            if own is dst:
                assert leaf.sharding == trees.leaves(dst)[path].sharding
spoilt = {**src, "stem": jax.tree.map(lambda leaf: leaf * np.float32(np.nan), src["stem"])}
try:
    tlv_jax.apply_transfer(plan, key, spoilt, dst)
except tlv_jax.NonFiniteSourceError as error:
    assert "'stem/kernel' has 216 values" in str(error)
else:
    raise AssertionError("weights that are not finite were taken")
"""


@pytest.mark.slow
def test_two_hosts_give_what_one_gives():
    tests = Path(__file__).parent
    flags = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}",
    }
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    hosts = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", HOST, address, str(number)],
            env={**os.environ, **flags},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for host in hosts:
        _, errors = host.communicate(timeout=300)
        assert host.returncode == 0, errors
