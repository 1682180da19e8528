"""Which files are images: one list, derived from the formats that Pillow decodes.

Apple's HEIC, AVIF and JPEG XL count as images whether or not this machine can decode them, so that
photographs are not left out without a word. A separate package decodes them where Pillow cannot.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache

from PIL import Image, features

#: Formats that Pillow names but does not decode by itself: documents (Ghostscript), Windows
#: metafiles (the Windows API), films, and containers without a reader.
_NOT_DECODED = frozenset(("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"))


@dataclass(frozen=True)
class _Plugin:
    """A package that teaches Pillow a format.

    Attributes:
        kind: what people call the format.
        endings: of its files, in lower case without the dot.
        brands: what bytes 8 to 12 of such a file may hold (ISO/IEC 14496-12).
        package: what to install.
        module: what to import.
        register: function of the module that registers it; empty where the import does.
    """

    kind: str
    endings: tuple[str, ...]
    brands: tuple[bytes, ...]
    package: str
    module: str
    register: str = ""


_PLUGINS = (
    _Plugin("AVIF", ("avif", "avifs"), (b"avif", b"avis"), "pillow-avif-plugin", "pillow_avif"),
    _Plugin(
        "HEIC",
        ("heic", "heif", "hif"),
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
        "pillow-heif",
        "pillow_heif",
        "register_heif_opener",
    ),
    _Plugin("JPEG XL", ("jxl",), (), "pillow-jxl-plugin", "pillow_jxl"),
)
_JPEG_XL = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")


@cache
def image_endings() -> frozenset[str]:
    """Endings of the files that count as images, in lower case without the dot."""
    Image.init()
    # Cameras' multi-picture files are JPEG to Pillow, which registers their ending for saving only.
    decoded = {"mpo"}
    for ending, kind in Image.registered_extensions().items():
        if kind in Image.OPEN and kind not in _NOT_DECODED:
            decoded.add(ending.lower().lstrip("."))
    return frozenset(decoded.union(*(plugin.endings for plugin in _PLUGINS)))


def is_image(name: str) -> bool:
    """Whether a file's name ends like that of an image."""
    _, dot, ending = name.rpartition(".")
    return bool(dot) and ending.lower() in image_endings()


def plugin_for(head: bytes) -> tuple[bool, str]:
    """Look for a package that decodes what Pillow could not identify, and register it.

    Args:
        head: the first bytes of the file, 16 or more.

    Returns:
        Whether a package was registered, so that reading should be tried again; and what to do
        otherwise, empty where the bytes are of no known format.
    """
    for plugin in _PLUGINS:
        boxed = head[4:8] == b"ftyp" and head[8:12] in plugin.brands
        if not boxed and not (plugin.kind == "JPEG XL" and head.startswith(_JPEG_XL)):
            continue
        if plugin.kind == "AVIF" and features.check("avif"):
            return False, ""  # Pillow decodes these: this one is damaged
        if _register(plugin):
            return True, ""
        return False, (
            f"{plugin.kind} is a format that this Pillow does not decode: "
            f"pip install {plugin.package}, or convert it to JPEG or PNG"
        )
    return False, ""


@cache
def _register(plugin: _Plugin) -> bool:
    try:
        module = importlib.import_module(plugin.module)
        if plugin.register:
            getattr(module, plugin.register)()
    except (ImportError, AttributeError, OSError):
        return False
    return True
