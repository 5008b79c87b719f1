"""Write the tables of docs/study.md from the rows of its comparisons.

    python -m benchmarks.study

Each file in benchmarks/results/study is the rows.csv of one comparison, under a name of its own.
What is on the page between `<!-- table: NAME -->` and `<!-- end -->` is replaced by its tables, and
between `<!-- table: legend -->` and `<!-- end -->` by what the starts are. The text around these is
written by hand, and kept.
"""

import ast
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from train.compare.markdown import estimate_cell, number_cell, progress_table, table_of
from train.compare.report import command_of, machine_words
from train.compare.rows import Row, columns_of, finished, read_rows
from train.compare.settings import CLASSIFIERS, STARTS, Settings
from train.compare.table import BASELINE, Line, make_table
from train.compare.trainings import Training
from train.errors import DataError
from train.machine import MACHINE
from train.run_folder import flat_settings

RESULTS = Path(__file__).parent / "results" / "study"
PAGE = Path(__file__).parent.parent / "docs" / "study.md"
BLOCK = re.compile(r"^<!-- table: (\S+) -->\n.*?^<!-- end -->$", re.M | re.S)
EPOCHS = (1, 3, 5, 10, 20, 30)  # of the table of progress, which also has the last one
PUBLISHED = "a transfer by this [published method](methods.md)"
LEGEND: Mapping[str, str] = MappingProxyType(
    {
        "he": "the target's own initialization, which is He's or close to it",
        "lsuv": "orthonormal kernels, scaled by what they write on training images",
        "default": "a transfer by the library's default method",
        **dict.fromkeys(("tlvfc", "dpiat", "weight_selection", "net2net"), PUBLISHED),
        "bare": "a transfer by the method of bare trees: convs alone, each by itself",
        "by_names": "as `default`, but with blocks by module names instead of the traced graph's",
        "batch_norms_given": "as `default`, but the target's group norms got scales and biases of "
        "the source's batch norms",
        "fit_trial": "a closed-form ridge regression of each kernel on the source's activations "
        "for 256 images, pulled towards the kernels of `by_names`",
        "fit": "kernels solved for, so that the target computes what the source computes of 256 "
        "training images",
        "fit_random": "as `fit`, but from a source with random weights",
        "random_matching": "as `default`, but each layer gets any source layer of its kind",
        "random_source": "as `default`, but from a source with random weights",
        "finetune": "the target's own published weights",
        "probe": "nothing: a linear classifier on the features of the frozen source",
        "pixels": "nothing: a linear classifier on the pixels of the images",
        "distill": "as `he`; `probe` teaches it in training",
        "+crossover": "as before the plus; the source lends features in training",
        "+distill": "as before the plus; `probe` teaches it in training",
        "+head": "as before the plus; its last layer is solved for by the labels first",
    }
)


class Study(NamedTuple):
    """One comparison.

    Attributes:
      name: of its file, without the suffix.
      rows: of the trainings that have ended, of the starts that are complete.
      starts: all that the file has, in its order.
      left_out: the starts that are not complete, and why.
      settings: of the comparison, by their names on the command line.
      machines: each with its versions and its days, and with its starts if there are several.
    """

    name: str
    rows: Sequence[Row]
    starts: Sequence[str]
    left_out: Mapping[str, str]
    settings: Mapping[str, Any]
    machines: Sequence[str]


def main(results: Path = RESULTS, page: Path = PAGE) -> None:
    """Rewrites the tables of a page from all files of rows.

    Args:
      results: folder of the files.
      page: in Markdown.

    Raises:
      DataError: if files and page do not fit each other, a file cannot be shown, or a start has no
        legend.
    """
    studies = [read_study(path) for path in sorted(results.glob("*.csv"))]
    blocks = {study.name: tables_of(study) for study in studies}
    blocks["legend"] = legend_of([start for study in studies for start in study.starts])
    page.write_text(with_blocks(page.read_text(), blocks))


def with_blocks(text: str, blocks: Mapping[str, str]) -> str:
    """The text of a page with these blocks between its marks.

    Raises:
      DataError: if not each block has one place on the page.
    """
    places = BLOCK.findall(text)
    if sorted(places) != sorted(blocks):
        raise DataError(
            f"The page has places for {', '.join(places)}, expected one for each of "
            f"{', '.join(blocks)}. Write <!-- table: NAME --> and <!-- end --> on lines of their "
            "own where a table belongs, and remove those without a file."
        )
    return BLOCK.sub(
        lambda found: f"<!-- table: {found[1]} -->\n\n{blocks[found[1]]}\n<!-- end -->", text
    )


def read_study(path: Path) -> Study:
    """Reads the rows of a comparison.

    Raises:
      DataError: if the file holds several comparisons, or no training that has ended.
    """
    rows = read_rows(path.parent, path.name)
    starts, ended = list(dict.fromkeys(row.training.start for row in rows)), finished(rows)
    if not ended:
        raise DataError(
            f"{path} has {len(rows)} rows, of no training that has ended. Complete the comparison, "
            "or take the file away."
        )
    left_out = _incomplete(starts, ended)
    return Study(
        name=path.stem,
        rows=[r for r in rows if r.training in ended and r.training.start not in left_out],
        starts=starts,
        left_out=left_out,
        settings=_settings(path, starts, ended),
        machines=_machines(path),
    )


def _incomplete(starts: Sequence[str], ended: Collection[Training]) -> dict[str, str]:
    """The starts that lack a training with a rate and a seed that others have."""
    rates, seeds = _rates(ended), {one.seed for one in ended}
    counts, left_out = Counter(one.start for one in ended), {}
    for start in starts:
        wanted = max(1, len(seeds) * (1 if start in CLASSIFIERS else len(rates)))
        if counts[start] < wanted:
            left_out[start] = f"{counts[start]} of {wanted} trainings have ended"
    return left_out


def _rates(trainings: Collection[Training]) -> list[float]:
    return sorted({one.learning_rate for one in trainings if one.learning_rate is not None})


def _settings(path: Path, starts: Sequence[str], ended: Collection[Training]) -> dict[str, Any]:
    """The settings that the rows were made with; what their version did not have is the default."""
    settings = flat_settings(Settings())
    for name, text in _written(path, list(settings)).items():
        if text != str(settings[name]):
            settings[name] = _value(text)
    if settings["data_dir"] is not None:
        settings["data_dir"] = "FOLDER"  # where the images lay says nothing about the comparison
    vmaps = [int(columns["vmap"]) for columns in columns_of(path.parent, ["vmap"], path.name)]
    return settings | {
        "methods": [start for start in starts if not _is_trial(start)],
        "seeds": len({one.seed for one in ended}),
        # Classifiers alone have none, and leave the default as it is.
        "learning_rates": _rates(ended) or settings["learning_rates"],
        "vmap": max(vmaps),
    }


def _written(path: Path, names: Sequence[str]) -> dict[str, str]:
    """The settings that the rows name, as text."""
    written: dict[str, str] = {}
    for columns in columns_of(path.parent, [f"settings.{name}" for name in names], path.name):
        for name, text in zip(names, columns.values(), strict=True):
            if text != "unknown" and written.setdefault(name, text) != text:
                raise DataError(
                    f"{path} has rows with {name}={written[name]} and with {name}={text}, expected "
                    "those of one comparison. Put each comparison into a file of its own."
                )
    return written


def _value(text: str) -> Any:
    """A setting that is not the default, as it is written in a row."""
    return ast.literal_eval(text) if text.startswith("[") or text in ("True", "False") else text


def _is_trial(start: str) -> bool:
    """Whether the library does not have this start."""
    return start.partition("+")[0] not in STARTS


def _machines(path: Path) -> list[str]:
    found: dict[str, list[dict[str, str]]] = defaultdict(list)
    for columns in columns_of(path.parent, ("start", "date", *MACHINE), path.name):
        found[machine_words({name: columns[name] for name in MACHINE})].append(columns)
    lines = []
    for words, columns in found.items():
        days = sorted({each["date"] for each in columns})
        line = f"{words}; {' to '.join(dict.fromkeys((days[0], days[-1])))}"
        if len(found) > 1:
            line += f" ({_quoted(dict.fromkeys(each['start'] for each in columns))})"
        lines.append(line)
    return lines


def legend_of(starts: Collection[str]) -> str:
    """What each of these starts is, as a table.

    Raises:
      DataError: for one that `LEGEND` does not have.
    """
    parts = {part for start in starts for part in re.split(r"(?=\+)", start)}
    if unknown := sorted(parts - LEGEND.keys()):
        raise DataError(
            f"There is no legend for {', '.join(unknown)}, expected one for each start. Write into "
            "LEGEND in benchmarks/study.py what it is."
        )
    trials = {name for name in parts if not name.startswith("+") and _is_trial(name)}
    rows = [
        (f"`{name}`", text + (" (a trial, not in the library)" if name in trials else ""))
        for name, text in LEGEND.items()
        if name in parts
    ]
    return table_of(("start", "the network begins with"), rows)


def tables_of(study: Study) -> str:
    """The command, the machines, and the tables of one comparison, in Markdown."""
    best_by, epochs = study.settings["best_by"], int(study.settings["epochs"])
    lines = sorted(
        make_table(study.rows, study.starts, best_by=best_by),
        key=lambda line: (line.test[best_by].count > 0, line.test[best_by].mean),
        reverse=True,
    )
    trained = [line for line in lines if line.learning_rate is not None]
    parts = (
        *([_command(study.settings)] if study.settings["methods"] else ()),
        *_notes(study),
        _scores(lines, best_by, epochs),
    )
    if trained:
        parts += (
            f"Mean {best_by.replace('_', ' ')} on the test images during training:\n",
            progress_table(trained, [*(epoch for epoch in EPOCHS if epoch < epochs), epochs]),
        )
    return "\n".join(parts)


def _command(settings: Mapping[str, Any]) -> str:
    """The command in lines of some 100 characters, each but the first from an option on."""
    first, *options = re.split(" (?=--)", command_of(settings))
    lines = [first]
    for option in options:
        if len(lines[-1]) + len(option) < 98:
            lines[-1] += f" {option}"
        else:
            lines.append(f"    {option}")
    return "```\n" + " \\\n".join(lines) + "\n```\n"


def _notes(study: Study) -> list[str]:
    """On what the trainings ran, and what the command and the tables do not have."""
    trainings = {row.training for row in study.rows}
    notes = [f"{len(trainings)} trainings on {'; and on '.join(study.machines)}."]
    if trials := [start for start in study.starts if _is_trial(start)]:
        lacking = "the command does not have" if study.settings["methods"] else "no command has"
        notes.append(f"Trials, which {lacking}: {_quoted(trials)}.")
    if study.left_out:
        left_out = "; ".join(f"`{start}` ({why})" for start, why in study.left_out.items())
        notes.append(f"Left out, as not complete: {left_out}.")
    return [f"{note}\n" for note in notes]


def _scores(lines: Sequence[Line], best_by: str, epochs: int) -> str:
    """The test metric of each start, its difference to `he`, and how soon it is as good as that."""
    last = next((line.curve.get(epochs) for line in lines if line.start == BASELINE), None)
    return table_of(
        (
            *("start", "learning rate", best_by.replace("_", " "), f"minus {BASELINE}", "p"),
            *(f"epochs to {BASELINE}", "seeds"),
        ),
        [
            (
                line.start,
                number_cell(line.learning_rate, "g"),
                _score(line, best_by),
                estimate_cell(line.difference, sign=True),
                number_cell(line.p_value, ".2g"),
                number_cell(_epochs_to(line, last.mean) if last else None, "d"),
                str(line.test[best_by].count),
            )
            for line in lines
        ],
    )


def _score(line: Line, metric: str) -> str:
    """With an interval over seeds; a classifier has one result for all seeds."""
    score = line.test[metric]
    return number_cell(score.mean, ".3f") if line.start in CLASSIFIERS else estimate_cell(score)


def _epochs_to(line: Line, score: float) -> int | None:
    """The first epoch after which the mean on the validation images is as good as that."""
    return next((epoch for epoch, each in line.curve.items() if epoch and each.mean >= score), None)


def _quoted(names: Collection[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        sys.exit(f"error: {error}")
