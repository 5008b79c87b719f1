"""What a figure shows once it is drawn, found by a renderer that takes notes."""

import itertools

from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.text import Text


class _Renderer(RendererAgg):
    def __init__(self, figure):
        width, height = map(int, figure.bbox.size)
        super().__init__(width, height, figure.dpi)
        self.texts = {}

    def draw_text(self, gc, x, y, s, prop, angle, ismath=False, mtext=None):
        if mtext is not None:  # a single line
            self.texts[id(mtext)] = mtext
        super().draw_text(gc, x, y, s, prop, angle, ismath, mtext)


def texts_of(figure):
    """The texts that are drawn, with the boxes that they take, in pixels."""
    renderer = _Renderer(figure)
    figure.draw(renderer)
    several = [text for text in figure.findobj(Text) if "\n" in text.get_text()]
    texts = [*renderer.texts.values(), *several]
    return [(text.get_text(), text.get_window_extent(renderer)) for text in texts]


def assert_readable(figure):
    """No text overlaps another one or leaves the figure, which is 2,000 pixels wide."""
    assert figure.bbox.width == 2000
    texts = texts_of(figure)
    for (one, box), (other, another) in itertools.combinations(texts, 2):
        apart = (
            *(box.x1 <= another.x0, another.x1 <= box.x0),
            *(box.y1 <= another.y0, another.y1 <= box.y0),
        )
        assert any(apart), f"{one!r} overlaps {other!r}"
    for text, box in texts:
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= 2000 and box.y1 <= figure.bbox.height
        assert inside, f"{text!r} leaves the figure"
        assert min(box.width, box.height) >= 7, f"{text!r} is too small to be read"


def lines_of(axes, label):
    """The x and y of all that is drawn with this label."""
    return [line.get_xydata() for line in axes.lines if line.get_label() == label]
