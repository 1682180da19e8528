"""Write ``csrc/arguments.h`` from the table: ``python -m castling.ops.native``."""

from castling.ops.native.arguments import HEADER, header_text
from castling.utils.files import write_text

write_text(HEADER, header_text())
