"""The C++ operators of the ``native`` path (being written)."""


def available() -> bool:
    """Whether the library is built."""
    return False


def why_not() -> str:
    """Why not."""
    return "not built"


def describe() -> str:
    """What it is."""
    return ""
