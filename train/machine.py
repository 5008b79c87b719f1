"""On which machine something ran, and by which versions."""

import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path

import jax

from train.results import reading, write_whole

__all__ = ["MACHINE", "device_name", "note_machine", "processor", "provenance", "read_machines"]

MACHINES_FILE = "machines.json"
PACKAGES = ("jax", "flax", "optax", "numpy", "tlv-jax")
MACHINE = ("machine", "python", *PACKAGES)
"""The columns of a comparison but the date."""


def provenance() -> dict[str, str]:
    """Returns the date, the machine, and the versions of Python and of what computes."""
    cores = f", {os.cpu_count()} cores" if jax.default_backend() == "cpu" else ""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{device_name()}{cores}",
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def note_machine(folder: Path) -> None:
    """Appends to a run's list of machines the present one, unless the last entry is the same.

    Raises:
      ConfigError: if the list is damaged.
      SaveError: if it cannot be written.
    """
    entry = provenance()
    entry["devices"], entry["processes"] = str(jax.device_count()), str(jax.process_count())
    entry["orbax-checkpoint"] = _version("orbax-checkpoint")
    known = read_machines(folder)
    if not known or known[-1] | {"date": ""} != entry | {"date": ""}:
        write_whole(folder / MACHINES_FILE, json.dumps([*known, entry], indent=1))


def read_machines(folder: Path) -> list[dict[str, str]]:
    """Returns date, machine and versions of a run's start and of later changes of them.

    A run of an earlier version has none.

    Raises:
      ConfigError: if the list is damaged.
    """
    path = folder / MACHINES_FILE
    if not path.is_file():
        return []
    with reading(path):
        return [dict(entry) for entry in json.loads(path.read_text())]


def device_name() -> str:
    """Returns the name of the first device; of a CPU that of the processor."""
    kind = jax.devices()[0].device_kind
    return processor() if kind == "cpu" else kind


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
