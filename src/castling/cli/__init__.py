"""The command line: one verb, one short function; the work is done by the packages below."""

from castling.cli.main import FUNCTIONS, run

__all__ = ["FUNCTIONS", "run"]
