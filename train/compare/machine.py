"""Where a row was measured: the machine and the versions, as columns."""

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

import jax

__all__ = ["MACHINE", "processor", "provenance"]

PACKAGES = ("jax", "flax", "optax", "numpy", "tlv-jax")
MACHINE = ("machine", "python", *PACKAGES)
"""The columns but the date."""


def provenance() -> dict[str, str]:
    """Returns the date, the machine, and the versions of Python and of what computes."""
    device = jax.devices()[0].device_kind
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{processor()}, {os.cpu_count()} cores" if device == "cpu" else device,
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def processor() -> str:
    """Returns the name of the CPU, or its kind where the system does not tell its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # used from its folder
