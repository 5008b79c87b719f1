"""Make the pictures of the documentation, and the first one of README.md.

    python -m docs.pictures

Runs the examples of docs/pictures.md, and saves the figure of each under the name of the picture
that follows it. The curves of docs/study.md are drawn from the rows of its comparison.
"""

import re
from pathlib import Path
from typing import Any

from benchmarks.study import RESULTS, read_study
from docs.first_picture import save_first_picture
from train.compare.picture import save_bands
from train.compare.table import make_table

FOLDER = Path(__file__).parent
EXAMPLE = re.compile(r"^```python\n((?:(?!```).*\n)+)```\n\n(?:!\[.*\]\((\S+)\)$)?", re.M)


def main() -> None:
    """Saves all pictures beside the pages."""
    save_first_picture(FOLDER / "first_picture.png")
    study = read_study(RESULTS / "mobilenet_v2_elpv.csv")
    metric = study.settings["best_by"]
    label = f"{metric.replace('_', ' ')}, validation images"
    save_bands(
        make_table(study.rows, study.starts, best_by=metric),
        label,
        FOLDER / "study_mobilenet_v2_elpv.png",
    )
    names: dict[str, Any] = {}
    for number, (lines, picture) in enumerate(
        EXAMPLE.findall((FOLDER / "pictures.md").read_text())
    ):
        exec(compile(lines, f"example {number} of docs/pictures.md", "exec"), names)
        if picture:
            names["figure"].savefig(FOLDER / picture, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main()
