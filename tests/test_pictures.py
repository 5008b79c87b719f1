"""Pictures of all kinds, as real files, in 8-bit RGB."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from importers import Preprocess
from importers.pictures import to_rgb
from tlv_jax.models import ImageError

RAMP = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (4, 1))
RED, HALF_RED = (255, 0, 0), (255, 0, 0, 128)


def saved(image, form, **options):
    """The file that Pillow writes."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def rgb(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(to_rgb(image))


def wide_rgb_png(pixels):
    """A PNG of 16 bits in each of three colours, which Pillow cannot write."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def tiff_of_12_bits(values):
    """A TIFF of two 12-bit values in three bytes, which Pillow cannot write."""
    height, width = values.shape
    pairs = values.reshape(-1, 2).astype(int)
    packed = b"".join(
        ((first << 12) | second).to_bytes(3, "big") for first, second in pairs.tolist()
    )
    tags = (256, width), (257, height), (258, 12), (259, 1), (262, 1), (273, 8), (278, height)
    tags = (*tags, (279, len(packed)))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + directory


def pgm(values, maximum):
    height, width = values.shape
    return f"P5 {width} {height} {maximum}\n".encode() + values.astype(">u2").tobytes()


WIDE = {
    "png": saved(Image.fromarray(RAMP), "PNG"),
    "tiff": saved(Image.fromarray(RAMP), "TIFF"),
    "tiff, big-endian": saved(Image.fromarray(RAMP.astype(">u2")), "TIFF"),
    "tiff, compressed": saved(Image.fromarray(RAMP), "TIFF", compression="tiff_lzw"),
    "tiff, 12 bits": tiff_of_12_bits(RAMP >> 4),
    "tiff, white is 0": saved(Image.fromarray(65535 - RAMP), "TIFF", tiffinfo={262: 0}),
    "pgm": pgm(RAMP, 65535),
    "pgm, 12 bits": pgm(RAMP >> 4, 4095),
    "png, colour": wide_rgb_png(np.stack([RAMP] * 3, axis=-1)),
}


@pytest.mark.parametrize("content", WIDE.values(), ids=WIDE)
def test_a_ramp_of_more_than_8_bits_is_scaled(content):
    np.testing.assert_allclose(rgb(content), np.stack([RAMP / 257] * 3, axis=-1), atol=1)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bits_in_memory_are_scaled_for_prediction(order):
    plain = Preprocess(resize=4, crop=4, mean=(0.0,) * 3, std=(1.0,) * 3)
    prepared = plain(Image.fromarray(RAMP[:, ::64].astype(order)))
    np.testing.assert_allclose(prepared[0, :, :, 0], RAMP[:, ::64] / 65535, atol=1 / 255)


def fits(values):
    cards = "SIMPLE  = T", "BITPIX  = 16", "NAXIS   = 2", "NAXIS1  = 256", "NAXIS2  = 4", "END"
    header = "".join(card.replace("= ", "=" + " " * 20).ljust(80) for card in cards)
    return header.ljust(2880).encode() + values.astype(">i2").tobytes()


UNKNOWN = {
    "floats": (saved(Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF"), "'F'"),
    "integers": (saved(Image.fromarray(RAMP.astype(np.int32)), "TIFF"), "'I'"),
    "signed": (fits(RAMP), "'I;16'"),
}


@pytest.mark.parametrize(("content", "mode"), UNKNOWN.values(), ids=UNKNOWN)
def test_pictures_of_unknown_white_are_refused_with_their_mode(content, mode):
    message = rf"mode {mode}.*expected.*as an 8-bit PNG"
    with Image.open(io.BytesIO(content)) as image, pytest.raises(ImageError, match=message):
        to_rgb(image)
    with Image.open(io.BytesIO(content)) as image, pytest.raises(ImageError, match=message):
        Preprocess()(image)


def palette(*colours, **options):
    """A picture of one row, with each colour of a palette once."""
    image = Image.new("P", (len(colours), 1))
    image.putpalette([value for colour in colours for value in colour])
    image.putdata(range(len(colours)))
    image.info |= options
    return image


def animation():
    frames = [Image.new("RGB", (1, 1), colour) for colour in ("blue", "red")]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


PIXELS = {
    "palette": (saved(palette(RED, (0, 0, 9)), "PNG"), [RED, (0, 0, 9)]),
    "palette, transparent": (
        saved(palette(RED, (0, 0, 9)), "PNG", transparency=0),
        [(255, 255, 255), (0, 0, 9)],
    ),
    "palette, half transparent": (
        saved(palette(RED, (0, 0, 9)), "PNG", transparency=b"\x80\xff"),
        [(255, 127, 127), (0, 0, 9)],
    ),
    "gif": (saved(palette(RED, (0, 0, 9)), "GIF"), [RED, (0, 0, 9)]),
    "gif, transparent": (
        saved(palette(RED, (0, 0, 9)), "GIF", transparency=0),
        [(255, 255, 255), (0, 0, 9)],
    ),
    "gif, animated": (animation(), [(0, 0, 255)]),
    "rgba": (saved(Image.new("RGBA", (1, 1), HALF_RED), "PNG"), [(255, 127, 127)]),
    "rgba, opaque": (saved(Image.new("RGBA", (1, 1), (*RED, 255)), "PNG"), [RED]),
    "rgb, one colour transparent": (
        saved(Image.new("RGB", (1, 1), RED), "PNG", transparency=RED),
        [(255, 255, 255)],
    ),
    "la": (saved(Image.new("LA", (1, 1), (100, 0)), "PNG"), [(255, 255, 255)]),
    "la, opaque": (saved(Image.new("LA", (1, 1), (100, 255)), "PNG"), [(100, 100, 100)]),
    "1 bit": (saved(Image.new("1", (1, 1), 1), "PNG"), [(255, 255, 255)]),
    "cmyk": (saved(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "JPEG"), [RED]),
    "cmyk, tiff": (saved(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"), [RED]),
    "grey": (saved(Image.new("L", (1, 1), 7), "PNG"), [(7, 7, 7)]),
}


@pytest.mark.parametrize(("content", "pixels"), PIXELS.values(), ids=PIXELS)
def test_colours_are_those_that_a_viewer_shows_on_white(content, pixels):
    np.testing.assert_allclose(rgb(content)[0].astype(int), pixels, atol=2)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_exif_says(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8)
    content = saved(Image.fromarray(pixels), form, exif=exif)
    with Image.open(io.BytesIO(content)) as image:
        expected = ImageOps.exif_transpose(image)
    assert expected.size == ((24, 16) if orientation < 5 else (16, 24))
    np.testing.assert_array_equal(rgb(content), expected)
    crop = Preprocess(resize=16, crop=16)
    with Image.open(io.BytesIO(content)) as image:
        np.testing.assert_array_equal(crop(image), crop(np.asarray(expected)))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bits_are_scaled_and_turned(form):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = rgb(saved(Image.fromarray(RAMP), form, exif=exif))
    np.testing.assert_allclose(turned[:, 0, 0], RAMP[0] / 257, atol=1)


def test_damaged_exif_turns_nothing():
    pixels = Image.new("RGB", (24, 16), "red")
    assert rgb(saved(pixels, "JPEG", exif=b"Exif\0\0no header")).shape == (16, 24, 3)


def test_a_truncated_picture_is_no_picture():
    content = saved(Image.fromarray(RAMP), "PNG")
    with pytest.raises(OSError, match="truncated"):
        rgb(content[: len(content) // 2])
