"""Text that others chose (names of files and models, addresses, answers), made fit to be stored and shown.

A terminal obeys control characters: a file's name could clear the screen, forge a line or set the clipboard.
An address may hold a password, which is nobody's business but the server's.
"""

from __future__ import annotations

import re

CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 and C1 without tab and line feed
    "\u200e\u200f\u202a-\u202e\u2066-\u2069"  # changes of the direction of writing, which reorder a line
    "\u2028\u2029"  # separators of lines and paragraphs
    "\ud800-\udfff]"  # halves of pairs: bytes of a name that are not UTF-8, which cannot be written
)

LOGIN = re.compile(r"(?<=://)[^/?#\s'\"]*@")
"""User and password of an address, up to the last @ before its path."""

HIDDEN = "***@"


def printable(text: str) -> str:
    """The text with control characters as escapes, `\\u001b`, which JSON takes for the same characters.

    Line feeds and tabs stay, as results have lines. A name among them is to be shown by `repr`, which escapes
    these, too.
    """
    return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def without_passwords(text: str) -> str:
    """The text with `***` for the user and the password of each address in it."""
    return LOGIN.sub(HIDDEN, text)


def one_line(text: str) -> str:
    """The text with a space for each run of spaces and line breaks, as an error is shown."""
    return " ".join(text.split())
