import gc
import io
import os
import random
import signal
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageFile

from xcit.errors import LONGEST_LINE, XCiTError
from xcit.images.find import find_images
from xcit.images.formats import IMAGE_SUFFIXES
from xcit.images.passed_by import PassedBy
from xcit.images.read import read_encoded_image, read_image

# All pixels are different, so that the tests notice every rotation of the picture.
PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3
# Flat blocks of colour, which JPEG reproduces within a few grey levels.
BLOCKS = np.kron(
    np.array([[[200, 30, 30], [30, 200, 30]], [[30, 30, 200], [240, 240, 240]]]), np.ones((16, 16, 1))
).astype(np.uint8)
Image.init()
WRITABLE = frozenset(Image.SAVE)


def pixels_of(source):
    image = read_image(source)
    assert image.mode == "RGB"
    assert type(image) is Image.Image
    assert image.info == {}
    return np.asarray(image)


def png(width, height, depth, colour, rows, *chunks):
    """Returns the bytes of a PNG; `rows` are the packed samples of each row."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    middle = b"".join(chunk(name, content) for name, content in chunks)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff(width, height, depth, photometric, data):
    """A grey little-endian TIFF made by hand."""
    sizes = [(256, width), (257, height), (258, depth), (259, 1), (262, photometric), (273, 8), (277, 1)]
    entries = [*sizes, (278, height), (279, len(data))]
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(entries)) + table + bytes(4)


def as_file(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write(tmp_path, data, name="image"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


# Formats


@pytest.mark.parametrize("kind", ["BMP", "DDS", "DIB", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF"])
def test_lossless_formats_keep_every_pixel(tmp_path, kind):
    if kind not in WRITABLE:
        pytest.skip(f"this Pillow does not write {kind}")
    path = write(tmp_path, as_file(Image.fromarray(PICTURE), kind))
    np.testing.assert_array_equal(pixels_of(path), PICTURE)


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000", "WEBP", "AVIF", "MPO", "GIF", "ICO", "ICNS"])
def test_other_formats_are_read(tmp_path, kind):
    if kind not in WRITABLE:
        pytest.skip(f"this Pillow does not write {kind}")
    image = Image.fromarray(BLOCKS.repeat(2, axis=0).repeat(2, axis=1))  # 64 x 64, a size that icons can have
    pixels = pixels_of(write(tmp_path, as_file(image, kind)))
    block = len(pixels) // 2  # ICNS contains several sizes, and the largest is read
    assert abs(pixels.astype(int)[block // 2 :: block, block // 2 :: block] - BLOCKS[8::16, 8::16]).max() <= 12


def test_paths_may_be_strings_and_suffixes_may_lie(tmp_path):
    path = write(tmp_path, as_file(Image.fromarray(PICTURE), "PNG"), "really a png.jpg")
    np.testing.assert_array_equal(pixels_of(str(path)), PICTURE)


def test_the_bytes_of_a_file_are_read_as_the_file(tmp_path):
    for data in (as_file(Image.fromarray(PICTURE), "PNG"), with_orientation(6, "PNG")):
        image = read_encoded_image(data, "a.png")
        np.testing.assert_array_equal(np.asarray(image), pixels_of(write(tmp_path, data)))
        assert image.mode == "RGB"
    for data in (b"", b"no image", as_file(Image.fromarray(BLOCKS), "JPEG")[:-100]):
        with pytest.raises(XCiTError) as of_bytes:
            read_encoded_image(data, "a.png")
        path = write(tmp_path, data)
        with pytest.raises(XCiTError) as of_file:
            read_image(path)
        assert str(of_bytes.value).removeprefix("a.png: ") == str(of_file.value).removeprefix(f"{path}: ")


def test_progressive_jpeg_equals_pillow(tmp_path):
    data = as_file(Image.fromarray(BLOCKS), "JPEG", progressive=True)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(pixels_of(write(tmp_path, data)), expected)


def test_formats_that_start_other_programs_are_refused(tmp_path):
    path = write(tmp_path, as_file(Image.fromarray(PICTURE), "EPS"))
    with pytest.raises(
        XCiTError, match=r"image: not an image that can be read \(it looks like a PostScript or EPS drawing; convert"
    ):
        read_image(path)


# Orientation

STORED = {
    1: PICTURE,
    2: PICTURE[:, ::-1],
    3: PICTURE[::-1, ::-1],
    4: PICTURE[::-1],
    5: PICTURE.transpose(1, 0, 2),
    6: np.rot90(PICTURE),
    7: PICTURE[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(PICTURE, -1),
}


def with_orientation(orientation, kind, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return as_file(Image.fromarray(np.ascontiguousarray(STORED[orientation])), kind, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_orientation(tmp_path, orientation, kind):
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    path = write(tmp_path, with_orientation(orientation, kind, **options))
    np.testing.assert_array_equal(pixels_of(path), PICTURE)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_jpeg_and_of_an_open_image(tmp_path, orientation):
    path = write(tmp_path, with_orientation(orientation, "JPEG", quality=100, subsampling=0))
    assert abs(pixels_of(path).astype(int) - PICTURE).max() <= 4
    with Image.open(path) as image:
        upright = read_image(image)
        assert image.size == STORED[orientation].shape[1::-1]  # the open image is not changed
    np.testing.assert_array_equal(pixels_of(upright), pixels_of(path))  # rotated one time, not two times


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_meaningless_orientations_do_nothing(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(tmp_path, as_file(Image.fromarray(PICTURE), "PNG", exif=exif))
    np.testing.assert_array_equal(pixels_of(path), PICTURE)


def test_damaged_exif_does_not_lose_the_image(tmp_path):
    good = with_orientation(6, "JPEG")
    start = good.index(b"Exif")
    for data in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"):
        broken = good[:start] + data + good[start + len(data) :]
        assert pixels_of(write(tmp_path, broken)).shape == (6, 4, 3)


# Transparency


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_alpha_lies_over_white(mode):
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 51, 255)):
        image.putpixel((x, 0), (100, 100, 100, alpha))
    if mode == "PA":
        grey = Image.new("P", (3, 1), 1)
        grey.putpalette([0, 0, 0, 100, 100, 100])
        grey.putalpha(image.getchannel("A"))
        image = grey
    else:
        image = image.convert(mode)
    assert image.mode == mode
    np.testing.assert_array_equal(pixels_of(image)[0, :, 0], [255, 224, 100])


@pytest.mark.parametrize("mode", ["RGBa", "La"])
def test_premultiplied_alpha(mode):
    image = Image.new(mode[:-1] + "A", (1, 1), (100, 51) if mode == "La" else (100, 100, 100, 51)).convert(mode)
    assert abs(int(pixels_of(image)[0, 0, 0]) - 224) <= 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_rgba_files(tmp_path, kind):
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    image.putpixel((1, 0), (10, 20, 30, 0))
    options = {"lossless": True} if kind == "WEBP" else {}
    path = write(tmp_path, as_file(image, kind, **options))
    assert pixels_of(path).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_palette(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    red, green, blue, white = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]
    assert pixels_of(write(tmp_path, as_file(image, "PNG"))).tolist() == [[red, green, blue]]
    one = as_file(image, "PNG", transparency=1)
    assert pixels_of(write(tmp_path, one)).tolist() == [[red, white, blue]]
    several = as_file(image, "PNG", transparency=bytes([255, 0, 51]))
    assert pixels_of(write(tmp_path, several)).tolist() == [[red, white, [204, 204, 255]]]
    assert pixels_of(write(tmp_path, as_file(image, "GIF", transparency=1))).tolist() == [[red, white, blue]]


@pytest.mark.parametrize(
    ("depth", "row", "transparent", "expected"),
    [
        (1, b"\x80", 1, [255, 0, 0]),
        (1, b"\x80", 0, [255, 255, 255]),
        (2, b"\x60", 2, [85, 255, 0]),
        (4, b"\x3c\x50", 12, [51, 255, 85]),
        (8, b"\x03\x0c\x55", 12, [3, 255, 85]),
        (16, b"\x10\x00\x10\x01\x30\x39", 0x1001, [16, 255, 48]),
    ],
)
def test_transparent_grey_of_a_png(tmp_path, depth, row, transparent, expected):
    data = png(3, 1, depth, 0, [row], (b"tRNS", struct.pack(">H", transparent)))
    assert pixels_of(write(tmp_path, data))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("depth", [8, 16])
def test_transparent_colour_of_a_png(tmp_path, depth):
    kind = ">6B" if depth == 8 else ">6H"
    factor = 1 if depth == 8 else 257
    row = struct.pack(kind, *(value * factor for value in (1, 2, 3, 1, 2, 4)))
    colour = struct.pack(">3H", *(value * factor for value in (1, 2, 3)))
    path = write(tmp_path, png(2, 1, depth, 2, [row], (b"tRNS", colour)))
    assert pixels_of(path).tolist() == [[[255, 255, 255], [1, 2, 4]]]


# Other modes of pixels


@pytest.mark.parametrize("mode", ["1", "L", "RGBX", "YCbCr", "HSV", "CMYK", "P"])
def test_modes_convert_as_in_pillow(mode):
    image = Image.fromarray(BLOCKS).convert(mode)
    np.testing.assert_array_equal(pixels_of(image), np.asarray(image.convert("RGB")))
    if mode not in "1LP":
        assert abs(pixels_of(image).astype(int) - BLOCKS).max() <= 3


def test_one_bit_file(tmp_path):
    image = Image.fromarray(np.array([[True, False]]))
    assert pixels_of(write(tmp_path, as_file(image, "TIFF")))[0, :, 0].tolist() == [255, 0]


def test_lab(tmp_path):
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.buildTransform(*profiles, "RGB", "LAB").apply(Image.fromarray(BLOCKS))
    path = write(tmp_path, as_file(lab, "TIFF"))
    with Image.open(path) as image:
        assert image.mode == "LAB"
    assert abs(pixels_of(path).astype(int) - BLOCKS).max() <= 15  # 8 bits a channel are coarse in LAB


def test_cmyk_jpeg(tmp_path):
    image = Image.fromarray(BLOCKS).convert("CMYK")
    data = as_file(image, "JPEG", quality=95)
    assert b"Adobe" in data  # a JPEG with the Adobe marker stores CMYK inverted
    assert abs(pixels_of(write(tmp_path, data)).astype(int) - BLOCKS).max() <= 8


def test_ycck_jpeg(tmp_path):
    cmyk = np.asarray(Image.fromarray(BLOCKS).convert("CMYK"))
    ycc = np.asarray(Image.fromarray(np.ascontiguousarray(cmyk[..., :3])).convert("YCbCr"))
    stored = np.concatenate([255 - ycc, cmyk[..., 3:]], axis=2)  # Pillow inverts as it writes
    data = bytearray(as_file(Image.fromarray(stored, "CMYK"), "JPEG", quality=95))
    data[data.index(b"Adobe") + 11] = 2  # now the marker says that the colours are YCCK
    assert abs(pixels_of(write(tmp_path, bytes(data))).astype(int) - BLOCKS).max() <= 8


SIXTEEN = np.array([[0, 128, 129, 257, 32768, 65535 - 129, 65535 - 128, 65535]], dtype=np.uint16)
EIGHT = [0, 0, 1, 1, 128, 254, 255, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000"])
def test_16_bit_grey_files_are_scaled(tmp_path, kind):
    path = write(tmp_path, as_file(Image.fromarray(SIXTEEN), kind))
    with Image.open(path) as image:
        assert image.mode.startswith("I")
    assert pixels_of(path)[0, :, 0].tolist() == EIGHT


def test_16_bit_files_made_elsewhere(tmp_path):
    big = SIXTEEN.astype(">u2").tobytes()
    assert pixels_of(write(tmp_path, b"P5 8 1 65535\n" + big))[0, :, 0].tolist() == EIGHT
    little = SIXTEEN.astype("<u2").tobytes()
    assert pixels_of(write(tmp_path, tiff(8, 1, 16, 1, little)))[0, :, 0].tolist() == EIGHT
    white_is_zero = write(tmp_path, tiff(8, 1, 16, 0, little))
    assert pixels_of(white_is_zero)[0, :, 0].tolist() == [255 - value for value in EIGHT]
    twelve_bits = write(tmp_path, tiff(2, 1, 12, 1, b"\xff\xf8\x00"))  # 4095, 2048
    assert pixels_of(twelve_bits)[0, :, 0].tolist() == [255, 128]


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I"])
def test_integer_modes(mode):
    image = Image.new(mode, (1, 1), 0x1234)
    assert pixels_of(image)[0, 0].tolist() == [18, 18, 18]


def test_16_bit_colour_png(tmp_path):
    row = struct.pack(">6H", *(value * 257 for value in (1, 2, 3, 200, 100, 255)))
    assert pixels_of(write(tmp_path, png(2, 1, 16, 2, [row]))).tolist() == [[[1, 2, 3], [200, 100, 255]]]


@pytest.mark.parametrize("value", [-1, 65536])
def test_integers_of_more_than_16_bits_are_refused(value):
    with pytest.raises(XCiTError, match=f"integer pixels must be in 0..65535, found {value}..{value}"):
        read_image(Image.new("I", (1, 1), value))


def test_floating_point_images(tmp_path):
    image = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    path = write(tmp_path, as_file(image, "TIFF"))
    assert pixels_of(path)[0, :, 0].tolist() == [0, 128, 255]
    for wrong in (255.0, -0.1, float("nan"), float("inf")):
        with pytest.raises(XCiTError, match=r"^PIL image of mode F: floating-point pixels must be in 0\.\.1"):
            read_image(Image.new("F", (2, 2), wrong))


# Several frames


@pytest.mark.parametrize(("kind", "suffix"), [("GIF", "gif"), ("PNG", "apng"), ("WEBP", "webp"), ("TIFF", "tif")])
def test_the_first_frame_of_several(tmp_path, kind, suffix):
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = as_file(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    path = write(tmp_path, data, f"frames.{suffix}")
    with Image.open(path) as image:
        assert getattr(image, "n_frames") == 3  # noqa: B009 - only some of Pillow's classes declare it
        assert (pixels_of(path) == (255, 0, 0)).all()
        image.seek(1)
        assert (pixels_of(image) == (0, 255, 0)).all()  # an open image is read at its current frame


# Arrays and tensors


def test_arrays_of_every_type():
    grey = np.array([[0, 51, 255]], dtype=np.uint8)
    for array in (grey, grey / 255, (grey / 255).astype(np.float16), grey.astype(np.uint16) * 257):
        assert pixels_of(array)[0, :, 0].tolist() == [0, 51, 255]
        assert pixels_of(array[..., None]).shape == (1, 3, 3)
    assert pixels_of((grey.astype(np.uint16) * 257).astype(">u2"))[0, :, 2].tolist() == [0, 51, 255]
    assert pixels_of(grey > 60)[0, :, 1].tolist() == [0, 0, 255]
    np.testing.assert_array_equal(pixels_of(PICTURE), PICTURE)
    np.testing.assert_array_equal(pixels_of(PICTURE[::-1, ::-2]), PICTURE[::-1, ::-2])
    assert pixels_of(np.array([[[9, 9, 9, 0], [9, 9, 9, 255]]], dtype=np.uint8))[0, :, 0].tolist() == [255, 9]


def test_tensors_of_every_type():
    tensor = torch.from_numpy(PICTURE).permute(2, 0, 1)
    for image in (tensor, tensor / 255, (tensor / 255).requires_grad_(), tensor.to(torch.uint16) * 257):
        np.testing.assert_array_equal(pixels_of(image), PICTURE)
    assert abs(pixels_of((tensor / 255).bfloat16()).astype(int) - PICTURE).max() <= 1
    assert pixels_of(torch.ones(2, 5)).shape == (2, 5, 3)
    assert pixels_of(torch.ones(1, 2, 5, dtype=torch.bool)).min() == 255
    assert pixels_of(torch.zeros(4, 2, 5)).min() == 255  # wholly transparent


@pytest.mark.parametrize("shape", [(3,), (3, 5, 6), (5, 6, 2), (1, 5, 6, 3), (0, 6), (5, 0, 3)])
def test_arrays_of_a_wrong_shape(shape):
    with pytest.raises(XCiTError) as error:
        read_image(np.zeros(shape, dtype=np.uint8))
    expected = f"image array: shape {shape}: an image must have shape (H, W), or (H, W, C) with C 1, 3 or 4"
    assert str(error.value) == expected


@pytest.mark.parametrize("shape", [(3,), (5, 6, 3), (1, 3, 5, 6), (3, 0, 5)])
def test_tensors_of_a_wrong_shape(shape):
    with pytest.raises(XCiTError) as error:
        read_image(torch.zeros(shape))
    expected = f"image tensor: shape {shape}: an image must have shape (H, W), or (C, H, W) with C 1, 3 or 4"
    assert str(error.value) == expected


@pytest.mark.parametrize("array", [np.full((2, 2), 2.0), np.full((2, 2), np.nan), -np.ones((2, 2), dtype=np.float32)])
def test_floating_point_numbers_out_of_range(array):
    with pytest.raises(XCiTError, match=r"^image array: floating-point pixels must be in 0\.\.1, found "):
        read_image(array)
    with pytest.raises(XCiTError, match=r"^image tensor: floating-point pixels must be in 0\.\.1, found "):
        read_image(torch.from_numpy(array))


def test_wrong_types():
    with pytest.raises(XCiTError, match="pixels of type int64; the supported types are uint8"):
        read_image(np.zeros((2, 2), dtype=np.int64))
    with pytest.raises(XCiTError, match="pixels of type complex64"):
        read_image(torch.zeros(2, 2, dtype=torch.complex64))
    with pytest.raises(
        XCiTError,
        match="an image must be a path, a URL, bytes, an open file, a PIL image, a NumPy array or a tensor, not int",
    ):
        read_image(3)  # type: ignore[arg-type]
    with pytest.raises(XCiTError, match=r"^PIL image of mode L: has no pixels \(0 x 3\)"):
        read_image(Image.new("L", (0, 3)))


# Damaged files


def refusal(path):
    with pytest.raises(XCiTError) as error:
        read_image(path)
    assert str(error.value).isprintable() and len(str(error.value)) <= LONGEST_LINE
    message = error.value.args[0]
    name, colon, reason = message.partition(": ")
    assert colon and name == (str(path) if str(path).isprintable() else ascii(str(path)))
    return reason


def test_reasons(tmp_path):
    assert refusal(tmp_path / "none.png") == "no such file"
    assert refusal(tmp_path) == "is a folder, not an image file"
    assert refusal(write(tmp_path, b"")) == "the file is empty (0 bytes)"
    assert refusal(write(tmp_path, b"x") / "below a file").startswith("cannot be opened (Not a directory")
    assert refusal(tmp_path / ("n" * 5000)).startswith("cannot be opened (File name too long")
    assert refusal(tmp_path / "zero\0byte") == "no file can have a zero byte in its name"
    assert refusal(tmp_path / "two\nlines") == "no such file"
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == "is not a regular file"


@pytest.mark.parametrize(
    ("data", "guess"),
    [
        (b"\n<!DOCTYPE html><title>404</title>", " (it looks like an HTML page)"),
        ("a picture of a bird, d\u00e9j\u00e0 vu\n".encode() * 50, " (it looks like text)"),
        (b"version https://git-lfs.github.com/spec/v1\n", " (it looks like a Git LFS pointer, not the file itself)"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", " (it looks like a video, or a HEIC or AVIF image; convert it to PNG or JPEG)"),
        (b"\x89PNG\r\n\x1a\n", " (it looks like a damaged PNG image)"),
        (b"\xff\xd8\xff\xe0\0", " (it looks like a damaged JPEG image)"),
        (b"PK\x03\x04\x14\0", " (it looks like a ZIP archive)"),
        (b"\x01\x02\x03\xff\xfe", ""),
    ],
)
def test_what_is_no_image(tmp_path, data, guess):
    assert refusal(write(tmp_path, data)) == f"not an image that can be read{guess}"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs users as Unix has them")
def test_no_permission(tmp_path):
    path = write(tmp_path, as_file(Image.fromarray(PICTURE), "PNG"))
    path.chmod(0)
    is_root = os.geteuid() == 0  # root may read everything
    if is_root:
        os.seteuid(65534)
    try:
        assert refusal(path) == "no permission to read it"
        assert find_images([path]) == [path]
    finally:
        if is_root:
            os.seteuid(0)


def test_decompression_bomb(tmp_path):
    path = write(tmp_path, png(60000, 60000, 8, 2, []))
    assert path.stat().st_size < 200
    assert refusal(path) == "more than 178,956,970 pixels, perhaps a decompression bomb"


def test_a_large_image_below_the_limit_is_read_without_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # the picture has 24 pixels
    for kind in ("PNG", "GIF", "TIFF"):
        path = write(tmp_path, as_file(Image.fromarray(PICTURE), kind))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert pixels_of(path).shape == (4, 6, 3)
        assert caught == []
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert "perhaps a decompression bomb" in refusal(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_truncated_files(tmp_path, kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    data = as_file(noise, kind)
    for length in (*range(1, 40), *range(40, len(data), max(1, len(data) // 60))):
        path = write(tmp_path, data[:length])
        try:
            assert pixels_of(path).shape == (40, 40, 3)
        except XCiTError:
            refusal(path)
    half = refusal(write(tmp_path, data[: len(data) // 2]))
    assert half.startswith(("a truncated, damaged or unsupported image (", "not an image that can be read"))


def test_random_bytes_and_damaged_files(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # damaged headers may ask for gigabytes
    chance = random.Random(0)
    image = Image.fromarray(BLOCKS)
    kinds = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA", "ICO", "JPEG2000", "PCX", "SGI", "QOI", "DDS")
    cases = [chance.randbytes(chance.randrange(1, 300)) for _ in range(60)]
    for kind in sorted(WRITABLE.intersection(kinds)):
        good = as_file(image, kind)
        cases.append(good[:12] + chance.randbytes(200))
        for _ in range(25):
            bad = bytearray(good)
            for _ in range(chance.randrange(1, 9)):
                bad[chance.randrange(min(len(bad), chance.choice((64, len(bad)))))] = chance.randrange(256)
            cases.append(bytes(bad))
    num_refused = 0
    for case in cases:
        path = write(tmp_path, case)
        try:
            pixels_of(path)
        except XCiTError:
            num_refused += 1
            refusal(path)
    assert num_refused > 100


def test_damage_in_an_open_image_is_reported_by_its_file(tmp_path):
    data = as_file(Image.fromarray(BLOCKS), "PNG")
    path = write(tmp_path, data[: len(data) // 2])
    with Image.open(path) as image, pytest.raises(XCiTError) as error:
        read_image(image)
    assert str(error.value).startswith(f"{path}: a truncated, damaged or unsupported image (")


def test_no_file_is_left_open(tmp_path):
    gif = as_file(Image.new("P", (9, 9)), "GIF", save_all=True, append_images=[Image.new("P", (9, 9), 1)])
    compressed = as_file(Image.fromarray(BLOCKS), "TIFF", compression="tiff_lzw")
    jpeg = as_file(Image.fromarray(BLOCKS), "JPEG")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for data in (gif, compressed, jpeg, as_file(Image.fromarray(BLOCKS), "TIFF"), jpeg[:300], b"text", gif[:20]):
            path = write(tmp_path, data)
            num_files = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0
            try:
                image = read_image(path)
            except XCiTError:
                image = None
            if num_files:
                assert len(list(Path("/proc/self/fd").iterdir())) == num_files
            del image
        gc.collect()
    assert [str(warning.message) for warning in caught if issubclass(warning.category, ResourceWarning)] == []


def test_many_threads_leave_the_warning_filters_as_they_were(tmp_path):
    path = write(tmp_path, with_orientation(6, "JPEG"))
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [read_image(path) for _ in range(20)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_pillow_is_strict_about_truncation():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False  # this package never enables it


# Finding files


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names(found, root):
    return [path.relative_to(root).as_posix() for path in found]


def test_suffixes():
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".bmp", ".gif"} <= IMAGE_SUFFIXES
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in IMAGE_SUFFIXES)


def test_folders_are_searched_in_natural_order(tmp_path):
    touch(tmp_path, "img10.png", "img2.PNG", "IMG1.jpg", "b/1.webp", "b2/x.tif", "b10/x.tif", "notes.txt", "1.png")
    touch(tmp_path, ".hidden.png", ".git/x.png", "b/.cache/x.png", "b/c/d/e.gif", "1/1.png")
    expected = ["1/1.png", "1.png", "b/1.webp", "b/c/d/e.gif", "b2/x.tif", "b10/x.tif", "IMG1.jpg", "img2.PNG"]
    assert names(find_images([tmp_path]), tmp_path) == [*expected, "img10.png"]
    assert names(find_images([str(tmp_path / "b")]), tmp_path) == ["b/1.webp", "b/c/d/e.gif"]
    assert names(find_images([tmp_path / ".git"]), tmp_path) == [".git/x.png"]


def test_linked_folders_are_followed_once(tmp_path):
    touch(tmp_path, "far/a.png", "near/b.png")
    (tmp_path / "near/far").symlink_to(tmp_path / "far")
    (tmp_path / "near/loop").symlink_to(tmp_path / "near")
    passed_by = PassedBy()
    assert names(find_images([tmp_path / "near"], passed_by), tmp_path) == ["near/b.png", "near/far/a.png"]
    assert str(passed_by) == "1 named or linked a second time"


def test_what_a_search_passes_by_is_counted(tmp_path):
    touch(tmp_path, "a.png", "a.txt", "b/c.json", "b/d", ".DS_Store", ".git/x.png", "b/._a.png", "b/e.txt")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    passed_by = PassedBy()
    found = find_images([tmp_path, tmp_path / "a.png"], passed_by)
    assert str(passed_by) == (
        "5 files without an image suffix: no suffix (2), .txt (2), .json (1); 3 hidden; 1 named or linked a second time"
    )
    assert names(found, tmp_path) == ["a.png", "gone.png"]
    with pytest.raises(XCiTError, match="no such file"):  # the reader reports a broken link
        read_image(found[1])
    assert str(PassedBy()) == ""


def test_files_are_taken_as_they_are_in_order_and_once(tmp_path, monkeypatch):
    touch(tmp_path, "z.png", "a.dat", "b/c.png")
    monkeypatch.chdir(tmp_path)
    found = find_images(["z.png", "a.dat", "missing.png", "./z.png", tmp_path / "z.png", "b", "b/../b/c.png"])
    assert found == [Path("z.png"), Path("a.dat"), Path("missing.png"), Path("b/c.png")]
    assert find_images([]) == []


def test_patterns(tmp_path, monkeypatch):
    touch(tmp_path, "a10.png", "a9.png", "b/a1.png", "b/c/a1.png", "img[1].png", "d/notes.txt", ".a.png")
    root = str(tmp_path)
    assert names(find_images([f"{root}/a*.png"]), tmp_path) == ["a9.png", "a10.png"]
    assert names(find_images([f"{root}/**/a1.png"]), tmp_path) == ["b/a1.png", "b/c/a1.png"]
    assert names(find_images([f"{root}/img[1].png"]), tmp_path) == ["img[1].png"]  # a file has that name
    assert names(find_images([f"{root}/[bd]"]), tmp_path) == ["b/a1.png", "b/c/a1.png"]
    assert names(find_images([f"{root}/b/**"]), tmp_path) == ["b/a1.png", "b/c/a1.png"]
    monkeypatch.chdir(tmp_path)
    assert find_images(["a?.png"]) == [Path("a9.png")]


def test_what_finds_nothing_is_named(tmp_path):
    touch(tmp_path, "d/notes.txt")
    with pytest.raises(XCiTError) as error:
        find_images([tmp_path / "d"])
    assert str(error.value) == (
        f"{tmp_path / 'd'}: a folder without images; left out: 1 files without an image suffix: .txt (1)"
    )
    with pytest.raises(XCiTError) as error:
        find_images([tmp_path / "*.png"])
    assert str(error.value) == f"{tmp_path / '*.png'}: no image matches this pattern"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
# A pytest mark and not `catch_warnings`, because only one reader at a time may change the warning filters.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_while_threads_read_does_not_hang(tmp_path):
    path = write(tmp_path, as_file(Image.fromarray(PICTURE), "TIFF"))  # read completely while the lock is held
    stopped = threading.Event()

    def read_on():
        while not stopped.is_set():
            read_image(path)

    filters = list(warnings.filters)
    threads = [threading.Thread(target=read_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    statuses = []
    for _ in range(20):
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # ends a child that hangs
            os._exit(0 if read_image(path).size == (PICTURE.shape[1], PICTURE.shape[0]) else 1)
        statuses.append(os.waitpid(child, 0)[1])
    stopped.set()
    for thread in threads:
        thread.join()
    assert statuses == [0] * 20
    assert len(warnings.filters) == len(filters)
