"""Lists the image formats that can be read, and guesses the format of other files."""

from functools import cache

from PIL import Image

# Pillow's names of the formats that can be read, and the suffixes of files in each format. EPS and similar formats are
# left out, because Pillow would start another program to render such files.
_SUFFIXES_BY_FORMAT = {
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "DDS": (".dds",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "ICNS": (".icns",),
    "ICO": (".ico",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpf", ".jpx"),
    "MPO": (".mpo",),
    "PCX": (".pcx",),
    "PNG": (".png", ".apng"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "PSD": (".psd",),
    "QOI": (".qoi",),
    "SGI": (".sgi",),
    "TGA": (".tga",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}

IMAGE_SUFFIXES = frozenset(suffix for suffixes in _SUFFIXES_BY_FORMAT.values() for suffix in suffixes)
"""Suffixes, in lower case, by which image files in a folder are recognised."""

# The first bytes of two groups of files: files that users mistake for images, and damaged images that Pillow does not
# recognise.
_SIGNATURES = (
    (b"\xff\xd8", "a damaged JPEG image"),
    (b"\x89PNG", "a damaged PNG image"),
    (b"GIF8", "a damaged GIF image"),
    (b"RIFF", "a damaged WebP image, or sound or video"),
    (b"II*\0", "a TIFF image that is damaged or of a rare kind"),
    (b"MM\0*", "a TIFF image that is damaged or of a rare kind"),
    (b"%PDF", "a PDF"),
    (b"%!PS", "a PostScript or EPS drawing; convert it to PNG or JPEG"),
    (b"\xc5\xd0\xd3\xc6", "an EPS drawing; convert it to PNG or JPEG"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x93NUMPY", "a NumPy array; load it and pass the array"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "XML, perhaps an SVG drawing"),
)


@cache
def opened_formats() -> tuple[str, ...]:
    """Returns the formats of `_SUFFIXES_BY_FORMAT` that this build of Pillow can open.

    MPO is not in the result, because Pillow opens MPO files as JPEG. Some builds of Pillow do not support AVIF.
    """
    Image.init()
    return tuple(format for format in _SUFFIXES_BY_FORMAT if format in Image.OPEN)


def looks_like(head: bytes) -> str:
    """Guesses the format of a file that can't be opened as an image, from the first bytes of the file.

    Returns:
        A text in parentheses for the end of an error message; "" if the format is unknown.
    """
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for signature, name in _SIGNATURES:
        if start.startswith(signature.lower()):
            return f" (it looks like {name})"
    if head[4:8] == b"ftyp":
        return " (it looks like a video, or a HEIC or AVIF image; convert it to PNG or JPEG)"
    text = head.decode("utf-8", errors="ignore")
    if len(text.encode()) >= len(head) - 3 and all(letter.isprintable() or letter.isspace() for letter in text):
        return " (it looks like text)"
    return ""
