"""The console script ``castling``: answers for help at once, loads the package for work.

PyTorch takes seconds to import. The tables of verbs and exit codes below are all that
``castling --help`` needs; a test keeps the verbs equal to what ``castling.cli`` offers.
"""

from __future__ import annotations

import difflib
import os
import signal
import sys
import threading
from types import FrameType

#: verb → what it does, in one line
VERBS = {
    "demo": "train, switch, export and measure small models on bundled digits; writes a report",
    "train": "train a model by a recipe, flags or both; resumes what was interrupted",
    "convert": "turn a pretrained softmax model linear, with images that need no labels",
    "evaluate": "metrics of a trained model on a split of its data or of other images",
    "switch": "remove a trained model's auxiliary softmax branches, with a certificate",
    "predict": "run a trained model or an exported file on images and folders",
    "explain": "what a model attends to on images of yours, a teacher beside it, as one page",
    "export": "write a trained model for ONNX Runtime, OpenVINO or torch.export, and verify it",
    "models": "list the models of this package; --macs adds parameters and MACs",
    "attentions": "list the attention mechanisms and their options",
    "check-data": "every fault of a data set in one report, before anything is trained on it",
    "compare": "differences of trained runs: recipe, curves, accuracy, size, speed",
    "bench": "time and memory of kernels (ops) and whole models (models) against softmax",
    "plan": "measure a model's attention layers here; keep softmax where it is faster",
}

DONE, SOME_FAILED, REFUSED, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
#: exit code → when a verb ends with it
EXIT_CODES = {
    DONE: "done",
    SOME_FAILED: "some inputs of many failed; the others were done",
    REFUSED: "wrong usage, bad input or refused; one line on standard error says why",
    INTERRUPTED: "Ctrl-C; an unfinished run is saved and says how to go on",
    TERMINATED: "SIGTERM; an unfinished run is saved, the same command goes on",
}


def usage() -> str:
    """The text of ``castling --help``."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {text}" for verb, text in VERBS.items())
    codes = "\n".join(f"  {code:<{width}}  {text}" for code, text in EXIT_CODES.items())
    return (
        "usage: castling VERB [options]\n\n"
        "Vision transformers whose attention costs O(N): train, switch, verify, export.\n\n"
        f"{verbs}\n\n"
        "castling VERB --help shows the options of a verb. castling --version prints the version.\n"
        "\n"
        f"exit codes:\n{codes}\n"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        the exit code; see ``EXIT_CODES``.
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
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        print(f"castling: {error}", file=sys.stderr)
        return REFUSED
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
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="", flush=True)
        return DONE
    if arguments[0] == "--version":
        from importlib import metadata

        print(f"castling {metadata.version('castling')}", flush=True)
        return DONE
    if arguments[0] not in VERBS:
        near = difflib.get_close_matches(arguments[0], VERBS, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; one of: {', '.join(VERBS)}"
        print(f"castling: no verb {arguments[0]!r}{hint}", file=sys.stderr)
        return REFUSED
    _announce(arguments)
    from castling.cli import run

    return run(arguments[0], arguments[1:])


def _announce(arguments: list[str]) -> None:
    """Say at once that something happens, to a person at a terminal; logs need no such line."""
    quiet = {"-h", "--help", "--quiet"} & set(arguments)
    if sys.stderr.isatty() and not quiet:
        print(f"castling {arguments[0]}: loading PyTorch …", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
