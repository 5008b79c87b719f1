"""What an HTML page holds, read by Python's own parser."""

from html.parser import HTMLParser

VOID = {"br", "img", "input", "link", "meta", "wbr"}
LINKS = {"action", "data", "href", "poster", "src", "srcset"}


class Page(HTMLParser):
    """A page whose tags are all closed, in order.

    `tags` has each tag that was opened, `links` what the page asks for, `tables` the cells of each
    row, `texts` the words in each kind of tag.
    """

    def __init__(self, html):
        super().__init__()
        self.tags, self.links, self.tables, self.texts, self._open = [], [], [], {}, []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in LINKS]
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if not self._open:
            return
        tag = self._open[-1]
        self.texts.setdefault(tag, []).append(data)
        if tag in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def facts(self):
        """The entries of all lists of facts."""
        return dict(zip(self.texts["dt"], self.texts["dd"], strict=True))
