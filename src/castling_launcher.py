"""The console script ``castling``: answers for help at once, loads the package for work.

PyTorch takes seconds to import. The table of verbs below is all that ``castling --help`` needs; a
test keeps it equal to what ``castling.cli`` offers.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

#: verb → what it does, in one line
VERBS = {
    "demo": "train, switch, export and measure small models on bundled digits; writes a report",
    "train": "train a model by a recipe, flags or both; resumes what was interrupted",
    "evaluate": "metrics of a trained model on a split of its data or of other images",
    "switch": "remove a trained model's auxiliary softmax branches, with a certificate",
    "predict": "run a trained model or an exported file on images and folders",
    "export": "write a trained model for ONNX Runtime, OpenVINO or torch.export, and verify it",
    "models": "list the models of this package; --macs adds parameters and MACs",
    "attentions": "list the attention mechanisms and their options",
    "bench": "time and memory of kernels (ops) and whole models (models) against softmax",
    "plan": "measure a model's attention layers here; keep softmax where it is faster",
}


def usage() -> str:
    """The text of ``castling --help``."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {text}" for verb, text in VERBS.items())
    return (
        "usage: castling VERB [options]\n\n"
        "Vision transformers whose attention costs O(N): train, switch, prove, export.\n\n"
        f"{verbs}\n\n"
        "castling VERB --help shows the options of a verb. castling --version prints the version.\n"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        the exit code: that of the verb, 2 for a wrong command, 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    listens = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if listens:
        signal.signal(signal.SIGINT, _on_interrupt)
    try:
        return _main(arguments)
    except KeyboardInterrupt:
        print(f"castling {arguments[0]}: interrupted", file=sys.stderr)
        return 130
    finally:
        if listens:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _on_interrupt(signum: int, frame: FrameType | None) -> None:
    """Leave at once within an import, where an exception would leave half a module behind.

    PyTorch and other packages turn a KeyboardInterrupt there into errors of their own.

    Raises:
        KeyboardInterrupt: anywhere else.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"castling: interrupted\n")
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if arguments[0] == "--version":
        from importlib import metadata

        print(f"castling {metadata.version('castling')}")
        return 0
    if arguments[0] not in VERBS:
        print(f"castling: no verb {arguments[0]!r}; one of: {', '.join(VERBS)}", file=sys.stderr)
        return 2
    from castling.cli import run

    return run(arguments[0], arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
