"""The error that every stage raises for something its user can put right."""

from thinkjepa.cache import ThinkJepaError


class StageError(ThinkJepaError):
    """A stage cannot go on: the message says what, where, what was found, what is allowed and the remedy."""
