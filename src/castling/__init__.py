"""Vision transformers whose attention costs O(N): train, convert, switch, prove, export."""

__version__ = "0.1.0"
