"""The parts that pages are made of. Each function returns HTML, in which all given text is text."""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

from tlv_jax.errors import PackageError
from tlv_jax.plots.files import svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def page(title: str, sections: Iterable[str]) -> str:
    """A whole page, from `section`s."""
    template = Template(files("tlv_jax.pages").joinpath("page.html").read_text("utf-8"))
    return template.substitute(title=escape(title), body="\n".join(sections))


def section(title: str, *parts: str) -> str:
    """Parts of a page under a heading."""
    return "\n".join(("<section>", f"<h2>{escape(title)}</h2>", *parts, "</section>"))


def facts(entries: Mapping[str, str]) -> str:
    """A list of names and what each stands for."""
    lines = [f"<dt>{escape(name)}</dt><dd>{escape(fact)}</dd>" for name, fact in entries.items()]
    return "\n".join(("<dl>", *lines, "</dl>"))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table. On a narrow screen each row is a card, in which the columns' names are repeated."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    lines = [
        "".join(
            f'<td data-name="{escape(name)}">{_breakable(cell)}</td>'
            for name, cell in zip(header, row, strict=True)
        )
        for row in rows
    ]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _breakable(path: str) -> str:
    """Text that may be broken behind each slash."""
    return escape(path).replace("/", "/<wbr>")


def filtered(table: str, what: str) -> str:
    """A table with a field above it: only rows that have all words typed there are shown.

    Args:
      table: from `table`.
      what: the rows are, in the plural.
    """
    field = f'<label>Filter {escape(what)} <input type="search" autocomplete="off"></label>'
    # Hidden until the script is there that it needs.
    return (
        f'<div class="filtered">\n<p hidden>{field} <output></output> {escape(what)}</p>\n'
        f"{table}\n</div>"
    )


def details(summary: str, text: str) -> str:
    """Preformatted text that is shown once it is asked for."""
    return (
        f"<details><summary>{escape(summary)}</summary>\n"
        f'<pre tabindex="0">{escape(text)}</pre></details>'
    )


def picture(draw: "Callable[[], Figure]", caption: str) -> str:
    """A figure as SVG within the page; one sentence in its place if matplotlib is not installed.

    Args:
      draw: returns the figure, or raises PackageError.
      caption: what the figure shows, without a full stop.
    """
    try:
        drawn = svg(draw())
    except PackageError:
        install = "pip install 'tlv-jax[plots]'"
        missing = f"{caption}: not drawn, as matplotlib is not installed. Run {install}"
        return f'<p class="note">{escape(missing)}</p>'
    # As an image: names within one SVG cannot meet those of another.
    data = base64.b64encode(drawn.encode()).decode()
    name = escape(caption)
    return (
        f'<figure><div class="wide" tabindex="0" role="group" aria-label="{name}">'
        f'<img alt="{name}" src="data:image/svg+xml;base64,{data}"></div>'
        f"<figcaption>{name}</figcaption></figure>"
    )
