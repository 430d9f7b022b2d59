"""Numbers as people read them."""

from __future__ import annotations


def counted(number: int, thing: str) -> str:
    """`1 video`, `2 videos`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def human_bytes(count: float) -> str:
    """Decimal units, as disks are sold: 16900000 is `16.9 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_hours(hours: float) -> str:
    """`12 s`, `5 min`, `3.2 h` or `4.1 days`."""
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
