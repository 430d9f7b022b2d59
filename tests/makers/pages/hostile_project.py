"""A project whose names and words are hostile, and its page taken apart."""

from __future__ import annotations

from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from thinkjepa.cache import FeatureCache
from thinkjepa.cache.disk.layout import index_dir

HOSTILE_NAME = "<img src=x onerror=alert(1)>&\"'"
HOSTILE_WORDS = "</script><script>document.title='owned'</script>\u202e\x07 & \"pour\""
VOID = {"meta", "img", "link", "br", "hr", "input", "source"}


@dataclass(frozen=True)
class Project:
    videos: Path
    cache: Path
    runs: Path
    report: Path

    @property
    def page(self) -> str:
        return (self.report / "index.html").read_text(encoding="utf-8")


def say_hostile_words(cache_dir: Path) -> None:
    """Replace what the thinker said of each clip, in the index."""
    cache = FeatureCache.open(cache_dir)
    (thinker,) = cache.filled_sets("thinker")
    for path in index_dir(cache_dir, thinker.name).glob("*.parquet"):
        rows = pq.read_table(path)
        place = rows.schema.get_field_index("generated_text")
        words = pa.array([HOSTILE_WORDS] * len(rows), rows.schema.field(place).type)
        pq.write_table(rows.set_column(place, rows.schema.field(place), words), path)


class Parsed(HTMLParser):
    """The elements of a page in order, with their attributes, and the text under each that is asked for."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.unmatched: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unmatched.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.append((self.open[-1], data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def words(self, tag: str) -> str:
        return "".join(text for name, text in self.texts if name == tag)
