"""What a comparison returns."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from train.compare.markdown import result_table
from train.compare.rows import Row
from train.compare.settings import Settings
from train.compare.table import Line

__all__ = ["Comparison"]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a comparison found. Prints as its table.

    Attributes:
      folder: holds the rows, `report.md` and, where matplotlib is installed, `curves.png`.
      settings: of the comparison, with all defaults filled in.
      rows: one for each epoch of each training that the settings ask for and that has ended.
      table: one line for each start, in the order of the settings.
      left_out: starts that cannot be made here, and why.
      missing: how many trainings are still to be run, by other parts or after a failure.
    """

    folder: Path
    settings: Settings
    rows: tuple[Row, ...]
    table: tuple[Line, ...]
    left_out: Mapping[str, str]
    missing: int

    def __str__(self) -> str:
        return result_table(self.table, self.settings.best_by)
