"""The report of a comparison in Markdown."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from train.compare.markdown import progress_table, rates_table, result_table, table_of
from train.compare.result import Comparison
from train.compare.settings import CLASSIFIERS, REPLACED, Settings
from train.data import PARTS, Splits
from train.run_folder import flat_settings

__all__ = ["command_of", "report_text"]

MOST_CLASSES = 20  # that are listed


def report_text(
    comparison: Comparison,
    splits: Splits,
    machines: Sequence[Mapping[str, str]],
    picture: str | None,
) -> str:
    """Writes down what was compared, how, and what came out.

    Args:
      comparison: what was found.
      splits: the images.
      machines: the machine and the versions of each kind of row.
      picture: file name of the curves, if they were drawn.
    """
    settings = comparison.settings
    assert settings.epochs is not None  # resolved
    metric = settings.best_by.replace("_", " ")
    parts = [
        f"# Starts of {settings.target} on {settings.dataset}\n",
        f"```\n{command_of(settings)}\n```\n",
        *_incomplete(comparison),
        "## Test images\n",
        result_table(comparison.table, settings.best_by),
        _how_to_read(settings, metric),
        f"## {metric.capitalize()} on the test images during training\n",
        progress_table(comparison.table, settings.epochs),
        *([f"![{metric} on the validation images by epoch]({picture})\n"] if picture else []),
        f"## Learning rates: best {metric} on the validation images\n",
        rates_table(comparison.table),
        *_lost(comparison),
        "## Images\n",
        _images(splits),
        "## Machine and versions\n",
        "".join(f"- {_words(machine)}\n" for machine in machines),
    ]
    return "\n".join(parts)


def command_of(settings: Settings) -> str:
    """The command that runs the whole comparison, with all settings that are not the defaults."""
    defaults = flat_settings(Settings())
    words = ["python", "-m", "train.compare"]
    for name, value in flat_settings(settings).items():
        if value == defaults[name] or name == "part" or name.partition(".")[0] in REPLACED:
            continue
        option = name.replace("_", "-")
        if isinstance(defaults[name], bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def _how_to_read(settings: Settings, metric: str) -> str:
    return (
        f"All starts are trained on the same images for {settings.epochs} epochs by "
        f"{_recipe(settings)}, with the same batches and augmentation for the same seed. Each "
        "start has the learning rate that is best "
        f"for it on the validation images (mean over seeds of the best {metric}). Each training is "
        "tested after its best epoch on the validation images. Behind ± is half of the 95% "
        "interval over seeds (Student's t); p is of a paired t-test, not corrected for the number "
        "of starts. The split is the same for all seeds, so the intervals say nothing about other "
        "images. `lost` counts trainings that diverged or failed; they are in no mean. "
        f"{' and '.join(f'`{name}`' for name in CLASSIFIERS)} are not random: they are the same "
        "for all seeds.\n"
    )


def _recipe(settings: Settings) -> str:
    """The recipe, and what is changed in it."""
    options = flat_settings(settings).items()
    changes = [
        f"{name.removeprefix('recipe.')}={value}"
        for name, value in options
        if name.startswith("recipe.") and value is not None
    ]
    changed = f" ({', '.join(changes)})" if changes else ""
    return f"the {settings.recipe.name} recipe{changed}"


def _incomplete(comparison: Comparison) -> list[str]:
    """What keeps this report from being the whole answer."""
    notes = [f"`{start}` is left out: {why}" for start, why in comparison.left_out.items()]
    if comparison.missing:
        notes.insert(
            0,
            f"**Not complete: {comparison.missing} trainings are missing.** The numbers may "
            "change. The command above runs what is missing.",
        )
    return [f"{note}\n" for note in notes]


def _lost(comparison: Comparison) -> list[str]:
    lost = [row for row in comparison.rows if row.status in ("diverged", "failed")]
    if not lost:
        return []
    lines = [
        f"- {row.training.start}, learning rate {row.training.learning_rate}, seed "
        f"{row.training.seed}, epoch {row.epoch}: {row.status}, {row.note}\n"
        for row in lost
    ]
    return ["## Trainings that were lost\n", "".join(lines)]


def _images(splits: Splits) -> str:
    counts = splits.counts()
    rows = [(name, *(str(counts[part][name]) for part in PARTS)) for name in splits.classes]
    shown = rows[:MOST_CLASSES]
    if len(rows) > MOST_CLASSES:
        shown.append((f"{len(rows) - MOST_CLASSES} more, see data.json", *["..."] * len(PARTS)))
    total = ("all", *(str(sum(counts[part].values())) for part in PARTS))
    return table_of(("class", *PARTS), [*shown, total])


def _words(machine: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in machine.items() if name != "machine")
    return f"{machine['machine']}; {versions}"
