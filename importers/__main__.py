"""`python -m importers`: look at checkpoints, convert and verify them, from the command line."""

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import flax.linen as nn
import jax
import numpy as np
import tyro

from importers.conversion import convert, entries_of, model_of
from importers.errors import CheckpointError
from importers.exporting import export, write_safetensors
from importers.families import FAMILIES
from importers.loading import available
from importers.sources import state_dict_of
from importers.weights import WEIGHTS, choose
from tlv_jax.errors import TLVError
from tlv_jax.tables import format_table

__all__ = ["main"]

TOLERANCE = 1e-4
"""Largest difference of the logits over the largest logit that `verify` lets pass.

Real weights differ by a few 1e-6; a wrong layout or a forgotten norm by far more than this.
"""

File = Annotated[Path, tyro.conf.Positional]


@dataclasses.dataclass(frozen=True)
class List:
    """List every architecture with its published weights."""

    def run(self) -> int:
        """Prints one line for each set of weights."""
        rows = [
            (
                name,
                f"{weights.parameters:,}",
                weights.tag + (" (DEFAULT)" if weights.default else ""),
                _percentage(weights.acc_at_1),
                f"{weights.megabytes:.1f}",
                weights.license or "",
            )
            for name in available()
            for weights in WEIGHTS[name]
        ]
        print(format_table(("name", "parameters", "weights", "acc@1", "MiB", "license"), rows))
        return 0


@dataclasses.dataclass(frozen=True)
class Show:
    """Show an architecture: its published weights, and the keys of its checkpoints.

    Attributes:
      name: of the architecture.
    """

    name: Annotated[str, tyro.conf.Positional]

    def run(self) -> int:
        """Prints the weights, then one line for each key."""
        choose(self.name)
        for weights in WEIGHTS[self.name]:
            pictures = weights.preprocess
            print(
                f"{weights.tag}: {weights.package or weights.url}\n"
                f"  {weights.megabytes:.1f} MiB, SHA-256 begins with {weights.sha256_prefix}; "
                f"accuracy {_percentage(weights.acc_at_1)} (top 1), "
                f"{_percentage(weights.acc_at_5)} (top 5)\n"
                f"  pictures: resized to {pictures.resize} ({pictures.interpolation}), cropped to "
                f"{pictures.crop}, mean {pictures.mean}, standard deviation {pictures.std}"
            )
        entries = entries_of(self.name, model_of(self.name, {}))
        rows = [(key, str(entry.shape), entry.leaf) for key, entry in entries.items()]
        buffers = FAMILIES[self.name].buffers(self.name)
        rows += [(key, str(array.shape), "a constant") for key, array in buffers.items()]
        print("\n" + format_table(("key", "shape in torch", "leaf"), rows))
        return 0


@dataclasses.dataclass(frozen=True)
class Convert:
    """Check a checkpoint strictly and write it as .safetensors, by torch's names.

    The file then loads without a pickle, here (importers.load) and in torch.

    Attributes:
      file: a .pth, .pt or .safetensors file.
      arch: the architecture.
      out: the file to write; one that is there is replaced.
    """

    file: File
    arch: str
    out: Path

    def run(self) -> int:
        """Writes the file."""
        params, batch_stats = convert(self.arch, state_dict_of(self.file))
        write_safetensors(self.out, self.arch, params, batch_stats)
        print(f"{self.out}: {_count(params):,} parameters of {self.arch}")
        return 0


@dataclasses.dataclass(frozen=True)
class Verify:
    """Check a checkpoint strictly, and its logits against torchvision's where that is installed.

    Attributes:
      file: a .pth, .pt or .safetensors file.
      arch: the architecture.
    """

    file: File
    arch: str

    def run(self) -> int:
        """Prints what was found; 1 if the logits differ."""
        state_dict = state_dict_of(self.file)
        params, batch_stats = convert(self.arch, state_dict)
        model = model_of(self.arch, state_dict)
        print(
            f"{self.file}: all {_count(params):,} parameters of {self.arch} with "
            f"{model.num_classes} classes are there, finite and of the right shape"  # type: ignore[attr-defined]
        )
        variables = {"params": params, **({"batch_stats": batch_stats} if batch_stats else {})}
        try:
            error = _difference_from_torchvision(self.arch, model, variables)
        except _IncomparableError as reason:
            print(f"not compared with torchvision, {reason}")
            return 0
        print(
            f"largest difference from torchvision's logits, over the largest: {error:.1e} "
            f"({'within' if error <= TOLERANCE else 'beyond'} {TOLERANCE:.0e})"
        )
        return 0 if error <= TOLERANCE else 1


class _IncomparableError(Exception):
    """torchvision cannot tell what the logits should be."""


def _difference_from_torchvision(
    name: str, model: nn.Module, variables: Mapping[str, Any]
) -> float:
    """The relative error of the logits of two random images."""
    channels: int = model.in_channels  # type: ignore[attr-defined]
    try:
        import torch
        import torchvision
    except (ImportError, RuntimeError) as error:  # its operators may be of another build
        raise _IncomparableError(f"which cannot be imported ({error})") from error
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise _IncomparableError("which does not have this architecture")
    if channels != 3:
        raise _IncomparableError(f"whose networks take 3 channels, not {channels}")
    side = getattr(model, "image_size", choose(name).preprocess.crop)
    options: dict[str, Any] = {"num_classes": model.num_classes}  # type: ignore[attr-defined]
    if hasattr(model, "aux_logits"):
        options |= {"aux_logits": model.aux_logits, "init_weights": False}
    if name.startswith("vit"):
        options["image_size"] = side
    network = torchvision.models.get_model(name, weights=None, **options).eval()
    network.load_state_dict(export(name, variables["params"], variables.get("batch_stats")))
    images = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    actual = np.asarray(model.apply(variables, images))
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 1 for a failed check, 2 for bad input."""
    command = tyro.cli(
        List | Show | Convert | Verify,  # type: ignore[arg-type]
        prog="python -m importers",
        description="Look at checkpoints of torchvision's networks, convert and verify them.",
        args=arguments,
    )
    try:
        return command.run()
    except BrokenPipeError:  # whoever reads the list, such as `head`, has seen enough
        # What Python still holds back would fail again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (TLVError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
    return 2


def _percentage(accuracy: float | None) -> str:
    return "not published" if accuracy is None else f"{accuracy:.2f}%"


def _count(tree: dict[str, Any]) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


if __name__ == "__main__":
    sys.exit(main())
