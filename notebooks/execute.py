"""Run the notebooks, and store them with their outputs beside their texts.

    python -m notebooks.execute [NAME ...]

A notebook is a text, `NAME.py`, of cells that begin with `# %%`. Each is run in a kernel of its own
and in an empty folder. `NAME.ipynb` is replaced if no cell fails.
"""

import argparse
import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.py") if path != Path(__file__)))
# All that readers of a notebook need to know of the kernel. Its version would change needlessly.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    for name in parser.parse_args().names:
        print(name, flush=True)
        notebook = read(FOLDER / f"{name}.py")
        execute(notebook)
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")


def read(path: Path) -> NotebookNode:
    """The notebook of a text, without what differs between two readings or only repeats it."""
    notebook = jupytext.read(path, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", nbformat.from_dict({})
    return notebook


def execute(notebook: NotebookNode) -> None:
    """Runs all cells, and stores what they put out in the notebook.

    Raises:
      CellExecutionError: if a cell fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=1200,  # seconds for a cell
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute()
    notebook.metadata = nbformat.from_dict(METADATA)


if __name__ == "__main__":
    main()
