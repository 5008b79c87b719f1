"""What a ranking returns."""

import csv
import dataclasses
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from tlv_jax.tables import format_table

__all__ = ["Ranking", "Row", "in_order"]

NOTHING = "-"


@dataclasses.dataclass(frozen=True)
class Row:
    """One source, or one control.

    Attributes:
      name: the architecture, with the name of its file if it has one; or what the control is.
      kind: a control is what any source has to beat.
      balanced_accuracy: on the validation images; None where it could not be computed.
      accuracy: likewise.
      features: number of features.
      penalty: chosen by cross-validation within the training images.
      similarity: to the target, if there is one.
      seconds: with loading and compilation.
      note: why it could not be computed.
    """

    name: str
    kind: Literal["source", "control"]
    seconds: float
    balanced_accuracy: float | None = None
    accuracy: float | None = None
    features: int | None = None
    penalty: float | None = None
    similarity: float | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Ranking:
    """What a ranking found. Prints as a table.

    Attributes:
      folder: holds `rank.csv`.
      rows: best first, the controls among the sources; last what could not be computed.
    """

    folder: Path
    rows: tuple[Row, ...]

    @property
    def best(self) -> Row | None:
        """The best source; None if none could be ranked."""
        sources = (row for row in self.rows if row.kind == "source" and not row.note)
        return next(sources, None)

    def __str__(self) -> str:
        similar = any(row.similarity is not None for row in self.rows)
        columns = ("source", "balanced accuracy", "accuracy", "features")
        header = (*columns, *["similarity"] * similar, "seconds")
        table = format_table(header, [_cells(row, similar=similar) for row in self.rows])
        failed = [f"{row.name}: {row.note}" for row in self.rows if row.note]
        return "\n".join([table, *failed])

    def to_csv(self, constants: Mapping[str, Any]) -> str:
        """Returns one line for each row.

        Args:
          constants: further columns, the same for all rows.
        """
        text = io.StringIO()
        columns = [*(field.name for field in dataclasses.fields(Row)), *constants]
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) | dict(constants) for row in self.rows)
        return text.getvalue()


def in_order(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The best first; last those that could not be computed."""
    return tuple(sorted(rows, key=lambda row: 1 if row.note else -(row.balanced_accuracy or 0)))


def _cells(row: Row, *, similar: bool) -> list[str]:
    name = row.name if row.kind == "source" else f"control: {row.name}"
    return [
        name,
        _number(row.balanced_accuracy),
        _number(row.accuracy),
        NOTHING if row.features is None else str(row.features),
        *[_number(row.similarity, digits=2)] * similar,
        f"{row.seconds:.0f}",
    ]


def _number(value: float | None, digits: int = 3) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"
