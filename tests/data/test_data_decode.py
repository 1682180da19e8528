from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features
from tests.data.pictures import picture

from castling.data import DataError, open_image, to_rgb
from castling.data.decode import read_size


def _stored(image: Image.Image, kind: str = "PNG", **options: object) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return Image.open(stream)


def test_transparent_pixels_show_white_not_what_lies_below() -> None:
    pixels = np.zeros((4, 4, 4), dtype=np.uint8)
    pixels[..., 0] = 200
    pixels[0, 0, 3] = 255
    image = to_rgb(_stored(Image.fromarray(pixels)))
    assert image.mode == "RGB"
    assert image.getpixel((0, 0)) == (200, 0, 0)
    assert image.getpixel((3, 3)) == (255, 255, 255)


def test_grey_with_alpha() -> None:
    image = Image.new("LA", (3, 3), (10, 0))
    assert to_rgb(_stored(image)).getpixel((1, 1)) == (255, 255, 255)


def test_grey_and_black_and_white() -> None:
    assert to_rgb(_stored(Image.new("L", (3, 2), 77))).getpixel((0, 0)) == (77, 77, 77)
    assert to_rgb(_stored(Image.new("1", (3, 2), 1))).getpixel((0, 0)) == (255, 255, 255)


def test_palette_with_and_without_transparency() -> None:
    palette = Image.new("RGB", (4, 4), (10, 200, 30)).quantize(4)
    assert to_rgb(_stored(palette)).getpixel((0, 0)) == (10, 200, 30)
    index = palette.getpixel((0, 0))
    assert to_rgb(_stored(palette, transparency=index)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 65535], [32768, 257 * 100]], dtype=np.uint16)
    image = to_rgb(_stored(Image.fromarray(values), kind))
    assert np.asarray(image)[..., 0].tolist() == [[0, 255], [128, 100]]


def test_thirty_two_bit_integers_and_floats() -> None:
    wide = Image.fromarray(np.array([[0, 65535]], dtype=np.int32))
    assert np.asarray(to_rgb(wide))[0, :, 0].tolist() == [0, 255]
    narrow = Image.fromarray(np.array([[0, 200]], dtype=np.int32))
    assert np.asarray(to_rgb(narrow))[0, :, 0].tolist() == [0, 200]
    real = Image.fromarray(np.array([[0.0, 0.2, 1.0]], dtype=np.float32))
    assert np.asarray(to_rgb(real))[0, :, 0].tolist() == [0, 51, 255]


def test_cmyk_is_converted() -> None:
    red = _stored(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    assert red.mode == "CMYK"
    pixel = to_rgb(red).getpixel((4, 4))
    assert pixel[0] > 240
    assert max(pixel[1:]) < 15


def test_camera_orientation_is_applied() -> None:
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned by 90 degrees clockwise
    image = to_rgb(_stored(Image.fromarray(pixels), "PNG", exif=exif))
    assert image.size == (8, 16)
    assert image.getpixel((4, 2)) == (255, 255, 255)
    assert image.getpixel((4, 13)) == (0, 0, 0)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    image = to_rgb(_stored(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert image.getpixel((0, 0)) == (255, 0, 0)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    whole = io.BytesIO()
    picture(0, 0, (64, 64)).convert("L").save(whole, "PNG")
    (tmp_path / "short.png").write_bytes(whole.getvalue()[:1000])
    for name, reason in (("empty", "0 bytes"), ("text", "not an image"), ("short", "cannot be")):
        with pytest.raises(DataError, match=rf"{name}\.png.*{reason}"):
            open_image(tmp_path / f"{name}.png")
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "absent.png")


def _chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk with its checksum (ISO/IEC 15948, 5.3)."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_with(kind: bytes, data: bytes, before: bytes = b"IDAT") -> bytes:
    stream = io.BytesIO()
    picture(0, 0, (20, 20)).save(stream, "PNG")
    png = stream.getvalue()
    at = png.index(before) - 4
    return png[:at] + _chunk(kind, data) + png[at:]


def _dds_of_unknown_format() -> bytes:
    """DXGI format 93, which Pillow does not implement: NotImplementedError."""
    header = b"DDS " + struct.pack("<7I", 124, 0x1007, 16, 16, 64, 0, 0) + bytes(44)
    header += (
        struct.pack("<2I", 32, 4) + b"DX10" + bytes(20) + struct.pack("<5I", 0x1000, 0, 0, 0, 0)
    )
    return header + struct.pack("<5I", 93, 3, 0, 1, 0) + bytes(1024)


def _avif(share: float, flipped: bool = False) -> bytes:
    stream = io.BytesIO()
    picture(0, 0, (64, 64)).save(stream, "AVIF", quality=60)
    data = stream.getvalue()[: int(len(stream.getvalue()) * share)]
    if flipped:
        at = data.index(b"mdat") + 12
        data = data[:at] + bytes(255 - byte for byte in data[at : at + 52]) + data[at + 52 :]
    return data


DAMAGED = {
    "ihdr.png": lambda: _png_with(b"IHDR", b""),
    "gama.png": lambda: _png_with(b"gAMA", b"", b"IEND"),
    "chrm.png": lambda: _png_with(b"cHRM", b"\0"),
    "trns.png": lambda: _png_with(b"tRNS", b""),
    "iccp.png": lambda: _png_with(b"iCCP", b"x"),
    "ztxt.png": lambda: _png_with(b"zTXt", b"a\0\1"),
    "format.dds": _dds_of_unknown_format,
    "empty.jpg": lambda: b"",
    "text.gif": lambda: b"GIF89a and then nothing of the kind",
}
if features.check("avif"):
    DAMAGED |= {
        "cut30.avif": lambda: _avif(0.3),
        "cut90.avif": lambda: _avif(0.9),
        "flipped.avif": lambda: _avif(1, flipped=True),
    }


@pytest.mark.parametrize("name", DAMAGED)
def test_whatever_a_decoder_raises_names_the_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(DAMAGED[name]())
    with pytest.raises(DataError) as caught:
        open_image(path)
    assert str(caught.value).startswith(f"{path} ")
    assert "\n" not in str(caught.value)
    assert "pip install" not in str(caught.value)


def _jpeg(exif: bytes) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 8), "red").save(stream, "JPEG", exif=exif)
    return stream.getvalue()


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0II*\0\xff\xff\xff\x7f",  # the directory lies behind the end
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",  # 65535 entries, of which there are none
    ],
)
def test_damaged_exif_is_noted_and_the_image_read(tmp_path: Path, exif: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(_jpeg(exif))
    notes: list[str] = []
    image = open_image(path, notes.append)
    assert image.size == (16, 8)
    assert image.getpixel((3, 3))[0] > 240
    with path.open("rb") as stream:
        assert read_size(stream, str(path), notes.append) == (16, 8)
    assert len(notes) == 2
    assert all(str(path) in note and "EXIF is damaged" in note for note in notes)


def test_orientation_is_read_though_other_tags_are_damaged(tmp_path: Path) -> None:
    # Orientation 6, and a GPS directory that points behind the end.
    entries = struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack("<HHII", 0x8825, 4, 1, 10**6)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)
    path = tmp_path / "a.jpg"
    path.write_bytes(_jpeg(exif))
    assert open_image(path).size == (8, 16)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_that_of_pillow(orientation: int) -> None:
    from PIL import ImageOps

    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = _stored(Image.fromarray(pixels), "PNG", exif=exif)
    expected = ImageOps.exif_transpose(_stored(Image.fromarray(pixels), "PNG", exif=exif))
    assert np.array_equal(np.asarray(to_rgb(stored)), np.asarray(expected))


@pytest.mark.parametrize(
    ("head", "package"),
    [
        (b"\0\0\0\x18ftypheic", "pillow-heif"),
        (b"\0\0\0\x18ftypmif1", "pillow-heif"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "pillow-jxl-plugin"),
        (b"\xff\x0a\xfa\x7f", "pillow-jxl-plugin"),
    ],
)
def test_a_format_without_a_decoder_names_the_package(
    tmp_path: Path, head: bytes, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / "photo.jpg"  # telephones and converters leave the ending as it was
    path.write_bytes(head + bytes(100))
    with pytest.raises(DataError, match=rf"photo\.jpg.*pip install {package}"):
        open_image(path)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pipes in folders")
def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png is a pipe"):
        open_image(tmp_path / "a.png")


def test_too_many_pixels_are_refused_by_the_header(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b""))
    with pytest.raises(DataError, match=r"bomb\.png.*more than 178 million pixels"):
        open_image(path)


def test_transparency_of_palettes_and_greys_given_as_bytes() -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8))
    image.putpalette([10, 20, 30, 200, 100, 50])
    shown = to_rgb(_stored(image, transparency=bytes([0, 255])))
    assert np.asarray(shown).tolist() == [[[255, 255, 255], [200, 100, 50]]]
    grey = _stored(Image.fromarray(np.array([[7, 9]], dtype=np.uint8)), transparency=7)
    assert np.asarray(to_rgb(grey))[0, :, 0].tolist() == [255, 9]


def test_sixteen_bit_colour_keeps_its_high_byte() -> None:
    """PNG of 16 bits a channel: Pillow reads it as 8-bit RGB."""
    rows = b"\0" + struct.pack(">3H", 65535, 32768, 256)
    png = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    png += _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    with Image.open(io.BytesIO(png)) as image:
        assert to_rgb(image).getpixel((0, 0)) == (255, 128, 1)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_first_frame_of_every_kind_of_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    image = _stored(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert to_rgb(image).getpixel((0, 0)) == (255, 0, 0)
