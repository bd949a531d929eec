"""The formats of image files that are read, and what a file that is none of them looks like."""

from functools import cache

from PIL import Image

# What Pillow calls the formats that we read, with the suffixes of their files. EPS and the like stay out: Pillow would
# start another program to draw them.
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
"""The suffixes, in lower case, of the files that count as images in a folder."""

# The first bytes of what people mistake for an image, and of images that are too damaged for Pillow to know them.
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
    """Of our formats those that Pillow opens by name: MPO comes as JPEG, and AVIF is not in every build."""
    Image.init()
    return tuple(format for format in _SUFFIXES_BY_FORMAT if format in Image.OPEN)


def looks_like(head: bytes) -> str:
    """What a file is that is no image, by its first bytes, in brackets for the end of a message; empty if unknown."""
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
