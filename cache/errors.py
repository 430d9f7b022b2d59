"""The project's exceptions: messages written for the person at the terminal."""


class ThinkJepaError(Exception):
    """Something the user can act on. The message says what, where, what was found and the remedy.

    Command lines print it as one line and exit with status 2; anything else is a defect and keeps its
    traceback.
    """


class CacheError(ThinkJepaError):
    """The feature cache is missing, of another schema, damaged, held by someone else or full."""
