"""The bar for the epoch that runs, below one line for each finished epoch."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["ImagesPerSecond", "progress_bar"]


class ImagesPerSecond(ProgressColumn):
    """How many images the last steps took per second.

    A task has the field `batch`, the images of a step. Its first step is not counted, in which the
    step is compiled.
    """

    def render(self, task: Task) -> Text:
        """Returns the text; empty before the second step."""
        return Text(f"{task.speed * task.fields['batch']:,.0f} images/s" if task.speed else "")


def progress_bar(console: Console) -> Progress:
    """Returns a bar with steps, images per second, time taken and time left of an epoch."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        ImagesPerSecond(),
        TimeElapsedColumn(),
        TextColumn("taken,"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
    )
