import os

# Before jax is imported. Two devices let the sharding tests run on any machine; without the
# optimizer XLA compiles the many small programs of the tests several times faster.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
)

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest

# Programs are kept between test runs, and between tests that build the same one anew.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "float32")

# The first example of a property compiles, so a deadline would measure the compiler.
hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.load_profile("default")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def unprivileged(tmp_path) -> Iterator[None]:
    """Takes away the right to read and write in `tmp_path`, also from root."""
    tmp_path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)
    tmp_path.chmod(0o700)


def pytest_addoption(parser):
    parser.addoption("--parity-table", type=Path, help="Markdown file to keep the sweep's rows in.")
