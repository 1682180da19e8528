from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from castling.data import DataError, open_image, to_rgb


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
    Image.effect_noise((64, 64), 50).save(whole, "PNG")
    (tmp_path / "short.png").write_bytes(whole.getvalue()[:1000])
    for name, reason in (("empty", "0 bytes"), ("text", "not an image"), ("short", "cannot be")):
        with pytest.raises(DataError, match=rf"{name}\.png.*{reason}"):
            open_image(tmp_path / f"{name}.png")
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "absent.png")
