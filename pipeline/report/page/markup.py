"""Pieces of an HTML page that needs nothing else: tables, figures as SVG, and files as data URLs.

Everything that comes from a file is escaped. Figures name their colors by variables, which have another value
where the reader prefers a dark page.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from typing import Any
from xml.etree import ElementTree

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from thinkjepa.cache.text import printable

DARK_PAGE, DARK_INK = (0x14, 0x17, 0x1A), (0xE8, 0xE8, 0xE8)
"""Background and text of the dark page; those of the light one are white and black."""

LEAST_CONTRAST = 4.5
"""Of colors on the dark page, as WCAG asks for text."""

SMALLEST = 0.8
"""Share of its own size to which a figure shrinks before it scrolls: its text stays readable."""

COLOR = re.compile(r"#([0-9a-f]{6})\b")

VARIABLE = re.compile(r"var\(--c([0-9a-f]{6})")

NOT_IN_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


def escaped(value: Any) -> Markup:
    """A value as text of a page: markup stays, controls become visible."""
    return value if isinstance(value, Markup) else escape(printable(str(value)))


def template(source: str) -> Any:
    """A template in which everything is escaped that is no markup, and unknown names are errors."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=escaped, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source)


def html_table(
    header: Sequence[str], rows: Sequence[Sequence[Any]], *, left: int = 1, note: str = ""
) -> Markup:
    """A table that scrolls by itself where it is too wide, the first `left` columns to the left.

    A note is a paragraph above it. Empty without rows.
    """
    if not rows:
        return Markup("")
    name = note or ", ".join(filter(None, header))
    above = Markup('<p class="quiet">{}</p>').format(escaped(note)) if note else ""
    heads = [_head(value, index, left=left) for index, value in enumerate(header)]
    body = [
        Markup("<tr>{}</tr>").format(
            Markup("").join(_cell(value, index, left=left) for index, value in enumerate(row))
        )
        for row in rows
    ]
    return Markup(
        '{}<div class="scroll" role="region" tabindex="0" aria-label="Table: {}"><table><thead><tr>{}</tr>'
        "</thead><tbody>{}</tbody></table></div>"
    ).format(above, escaped(name), Markup("").join(heads), Markup("").join(body))


def _head(value: str, index: int, *, left: int) -> Markup:
    if not value:
        return Markup("<td></td>")
    return Markup('<th scope="col"{}>{}</th>').format(_numeric(index, left), escaped(value))


def _cell(value: Any, index: int, *, left: int) -> Markup:
    if index == 0:
        return Markup('<th scope="row">{}</th>').format(escaped(value))
    return Markup("<td{}>{}</td>").format(_numeric(index, left), escaped(value))


def _numeric(index: int, left: int) -> Markup:
    return Markup("") if index < left else Markup(' class="number"')


def inline_svg(content: bytes, *, key: str, title: str, description: str) -> Markup:
    """A figure of `svg_bytes` as part of a page, with the text that stands for it.

    `key` begins every id in it, so that several figures of a page have none in common.
    """
    root = ElementTree.fromstring(NOT_IN_XML.sub("", content.decode()))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for name, value in list(element.attrib.items()):
            del element.attrib[name]
            plain = name.rpartition("}")[2]
            element.set(plain, _of_page(value, plain, key))
    for parent in list(root.iter()):
        for child in [item for item in parent if item.tag in ("metadata", "style")]:
            parent.remove(child)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    left, _, right, _ = map(float, root.attrib["viewBox"].split())
    width_pt = right - left
    root.set("style", f"min-width: {SMALLEST * width_pt:.0f}pt; max-width: {width_pt:.0f}pt")
    root.set("role", "img")
    root.set("aria-labelledby", f"{key}-title {key}-desc")
    for tag, text in (("desc", description), ("title", title)):
        named = ElementTree.Element(tag, {"id": f"{key}-{tag}"})
        named.text = printable(text)
        root.insert(0, named)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _of_page(value: str, name: str, key: str) -> str:
    """The value of an attribute `name`: ids with the figure's key, colors as variables."""
    if name == "id":
        return f"{key}-{value}"
    if name == "href":
        return value.replace("#", f"#{key}-", 1)
    if name in ("style", "fill", "stroke"):
        value = COLOR.sub(r"var(--c\1, #\1)", value)
    return value.replace("url(#", f"url(#{key}-")


def dark_colors(markup: Iterable[str]) -> dict[str, str]:
    """The dark page's value of each variable that figures use, by its name."""
    used = sorted({name for text in markup for name in VARIABLE.findall(text)} | {"000000"})
    return {f"--c{name}": _dark(name) for name in used}


def _dark(color: str) -> str:
    """A color for the dark page: grays turned around, others lighter until they are told from it."""
    rgb = [int(color[start : start + 2], 16) for start in (0, 2, 4)]
    if len(set(rgb)) == 1:
        share = rgb[0] / 255
        return _hex(share * page + (1 - share) * ink for page, ink in zip(DARK_PAGE, DARK_INK, strict=True))
    found, page = [float(part) for part in rgb], _luminance(DARK_PAGE)
    while (_luminance(found) + 0.05) / (page + 0.05) < LEAST_CONTRAST:
        found = [part + 0.05 * (255 - part) for part in found]
    return _hex(found)


def _luminance(rgb: Sequence[float]) -> float:
    """Relative luminance, as WCAG defines it."""
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (value / 255 for value in rgb)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _hex(rgb: Iterable[float]) -> str:
    return "#" + "".join(f"{round(part):02x}" for part in rgb)


def data_url(content: bytes, *, kind: str) -> str:
    """A file as a URL that holds it; `kind` is its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
