"""Photographs on disk: finding them, reading them as 8-bit RGB, and dividing them into three splits."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, features
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import UserError, first_line
from pipeline.files import regular_bytes, write_bytes

# Pillow's formats that hold photographs; HEIF is there where a plug-in for it is installed and registered.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TIFF", "WEBP")
BUILT = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}  # libraries that a Pillow may be built without
COMPANIONS = (".json", ".md", ".txt", ".csv", ".xml", ".xmp", ".html", ".ini", ".db")  # no images, and no news
ORIENTATION = 0x0112  # EXIF: 1 is upright, 5 to 8 are turned by a quarter

# TIFF: the forms that the tests hold against another reader's pixels, by photometric interpretation: bits of each
# sample, and the kinds of extra samples (0 none in particular, 1 premultiplied alpha, 2 alpha). Others are refused:
# Pillow reads some of them with wrong pixels and says nothing (planar RGB of 16 bits, 16-bit grey with white as 0).
TIFF_FORMS: dict[int, set[tuple[tuple[int, ...], tuple[int, ...]]]] = {
    0: {((1,), ()), ((8,), ())},  # grey, 0 is white
    1: {((1,), ()), ((8,), ()), ((16,), ()), ((8, 8), (2,))},  # grey, 0 is black
    2: {((bits,) * (3 + len(extra)), extra) for bits in (8, 16) for extra in ((), (0,), (1,), (2,))},  # RGB
    3: {((8,), ())},  # palette
    5: {((8,) * 4, ())},  # CMYK
    6: {((8,) * 3, ())},  # YCbCr, as JPEG
}
TIFF_LOSSLESS = {1, 5, 8, 32773, 32946}  # none, LZW, deflate, PackBits, deflate's older number
TIFF_JPEG = 7


logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it logs of damaged files stands in the UserError
Image.init()
KINDS = [kind for kind in FORMATS if kind in Image.OPEN and (kind not in BUILT or features.check(BUILT[kind]))]
SUFFIXES = tuple(sorted(suffix for suffix, kind in Image.registered_extensions().items() if kind in KINDS))


def list_images(folder: Path) -> list[Path]:
    """The image files lying directly in `folder`, sorted by name (hidden files and folders are left out).

    A UserWarning counts and names the other files that are left out, apart from text and the like. Raises UserError
    when the folder is missing, is not a folder, holds no image, or has an image whose name isn't UTF-8 or has control
    characters, or that is a link to nothing.
    """
    allowed = ", ".join(SUFFIXES)
    if not os.path.isdir(folder):  # False, too, for a name that is too long
        raise UserError(f"{folder}: there is no such folder of images (expected one with files ending in {allowed})")
    images, others = [], []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith(".") or path.is_dir():
            continue
        if path.suffix.lower() not in SUFFIXES:
            if path.suffix.lower() not in COMPANIONS:
                others.append(ascii(path.name) if not _plain(path.name) else path.name)
            continue
        if not _plain(path.name):
            raise UserError(
                f"{folder}: the name {path.name!a} isn't UTF-8 or has control characters; others are allowed"
            )
        if path.is_symlink() and not path.exists():
            raise UserError(
                f"{path}: is a link to {os.readlink(path)}, where no file is; allowed are images and links to them"
            )
        if not path.is_file():
            raise UserError(f"{path}: is neither a file nor a link to one; allowed are images and links to them")
        images.append(path)
    if not images:
        named = f"; {_some(others)} can't be read" if others else ""
        raise UserError(f"{folder}: the folder holds no image (allowed suffixes: {allowed}){named}")
    if others:
        files = "1 file is" if len(others) == 1 else f"{len(others)} files are"
        warnings.warn(f"{folder}: {files} left out, as no image that can be read here: {_some(others)}", stacklevel=2)
    return images


def _plain(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", name)


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (" …" if len(names) > 3 else "")


def load_image(path: Path) -> np.ndarray:
    """One image file as [H, W, 3] uint8 sRGB, upright after its orientation (EXIF, or else XMP).

    Grey, palette and CMYK are converted; 16-bit samples are scaled to 8; transparency is composited on black, since the
    colour stored under a transparent pixel is arbitrary. Colour profiles are not applied, and of several frames
    the first is taken. Raises UserError, naming the file, for what cannot be decoded whole, or isn't read right.
    """
    with _opened(path) as image:
        turn = _orientation(image, path)
        if image.format == "PNG":
            _whole_png(path)
        if image.format == "TIFF":
            image.getexif()[ORIENTATION] = turn  # Pillow turns a TIFF while it loads it, by what stands here
            turn = 1
        image.load()
        if image.format in ("JPEG", "MPO"):
            _whole_jpeg(path, image)
        return np.ascontiguousarray(_turned(_to_rgb8(image, path), turn))


_whole: dict[str, tuple[int, int]] = {}  # files that were decoded without an error: size and time of change
_Whole = TypeAdapter(dict[str, tuple[int, int]])


def check_image(path: Path) -> None:
    """UserError for what `load_image` refuses; a file is decoded once, as long as its size and time of change stay."""
    status = path.stat()
    stamp = (status.st_size, status.st_mtime_ns)
    if _whole.get(str(path.absolute())) != stamp:
        load_image(path)
        _whole[str(path.absolute())] = stamp


def recall(file: Path) -> None:
    """Take over what `remember` wrote; a file that is absent or damaged counts for nothing."""
    with contextlib.suppress(OSError, ValidationError):
        _whole.update(_Whole.validate_json(regular_bytes(file)))


def remember(file: Path) -> None:
    """Write down which files were decoded without an error, for the next process."""
    content = _Whole.dump_json(_whole)
    with contextlib.suppress(OSError, UserError):  # where it can't be written, files are decoded again
        if _whole and (not file.exists() or regular_bytes(file) != content):
            write_bytes(file, content)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image file as `load_image` will give it, from its header alone: milliseconds.

    Raises UserError, naming the file, for one whose header can't be read, or whose form isn't read right.
    """
    with _opened(path) as image:
        tags = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
        width, height = (tags[256], tags[257]) if tags else image.size  # Pillow's size of a TIFF is turned already
        return (width, height) if _orientation(image, path) >= 5 else (height, width)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image whose header is read and allowed. UserError for whatever fails here or in the with block."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a large photograph is no attack, and EXIF's faults aren't the pixels'
            with Image.open(path, formats=KINDS) as image:
                _allowed(image, path)
                yield image
    except Exception as error:  # Pillow's plug-ins raise every kind on damaged files
        reason = first_line(error).rstrip(".")
        reason = (
            "it isn't a whole image of a known format" if isinstance(error, Image.UnidentifiedImageError) else reason
        )
        allowed = f"whole {', '.join(SUFFIXES)} files with 8 or 16 bits a sample"
        raise UserError(f"{path}: cannot be read as an image ({reason}); allowed are {allowed}") from error


def _allowed(image: Image.Image, path: Path) -> None:
    """ValueError for samples without a known range, and for forms that Pillow reads wrongly."""
    if image.mode == "F":
        raise ValueError("floating-point samples have no fixed range")
    if image.format == "TIFF":
        _allowed_tiff(image)
    if image.format == "PNG" and _png(path)[b"IHDR"][8:10] == b"\x10\x02" and "transparency" in image.info:
        raise ValueError("a transparent colour of 16 bits a sample")


def _allowed_tiff(image: Image.Image) -> None:
    tags = image.tag_v2  # type: ignore[attr-defined]
    photometric, bits, extra = tags.get(262), tuple(tags.get(258, (1,))), tuple(tags.get(338, ()))
    compression, planar, order = tags.get(259, 1), tags.get(284, 1), tags.get(266, 1)
    jpeg = compression == TIFF_JPEG and photometric in (1, 2, 6) and set(bits) == {8} and not extra
    lossless = compression in TIFF_LOSSLESS and photometric != 6
    apart = photometric == 2 and not extra and (bits[0] == 8 or compression != 1) and not jpeg
    if (
        (bits, extra) not in TIFF_FORMS.get(photometric, ())
        or not (jpeg or lossless)
        or (planar != 1 and not apart)
        or order != 1
        or set(tags.get(339, (1,))) != {1}
    ):
        raise ValueError(
            f"a TIFF of an untested form: photometric {photometric}, bits {bits}, extra samples {extra}, compression "
            f"{compression}, planar {planar}, fill order {order}, sample format {tags.get(339, (1,))}"
        )
    width, height = tags[256], tags[257]
    planes = len(bits) if planar == 2 else 1
    if 322 in tags:
        pieces, stored = -(-width // tags[322]) * -(-height // tags[323]), len(tags.get(324, ()))
    else:
        pieces, stored = -(-height // min(tags.get(278, height), height)), len(tags.get(273, ()))
    if stored != pieces * planes:
        raise ValueError(f"it has {stored} of {pieces * planes} parts of its pixels")


def _orientation(image: Image.Image, path: Path) -> int:
    """1 to 8, as EXIF's tag or else XMP says; whatever else stands there counts as 1, upright."""
    described = image
    if image.format == "PNG":
        header = b"".join(_chunk(kind, body) for kind, body in _png(path).items())
        described = Image.open(io.BytesIO(PNG + header + _chunk(b"IDAT", b"")), formats=["PNG"])
    try:
        value = Image.Image.getexif(described).get(ORIENTATION, 1)  # PNG's own decodes the pixels
    except Exception:  # damaged EXIF or XMP raises every kind, and the pixels may be whole
        return 1
    return next((turn for turn in range(1, 9) if turn == value), 1)


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """[H, W, 3] made upright."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return pixels[::rows, ::columns]


PNG = b"\x89PNG\r\n\x1a\n"
ONCE = (b"IHDR", b"PLTE", b"tRNS", b"eXIf")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(path: Path) -> dict[bytes, bytes]:
    """A PNG's header and what may tell its orientation, which may stand behind the pixels, where Pillow only finds it
    after decoding all of them. Of several texts only those that speak of EXIF or XMP are kept.

    ValueError where programs differ in what they make of the file: a chunk that may stand there once stands there
    twice, something is before the header, or colours are numbers of a palette that isn't there.
    """
    chunks: dict[bytes, bytes] = {}
    kinds: list[bytes] = []
    with open(path, "rb") as file:
        file.seek(len(PNG))
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind in kinds and kind in ONCE:
                raise ValueError(f"it has two chunks {kind.decode()}")
            kinds.append(kind)
            if kind == b"IEND":  # whatever stands behind it is no part of the image
                break
            if kind in (b"IHDR", b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                body = file.read(length)
                if kind in (b"IHDR", b"eXIf") or body.startswith((b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")):
                    chunks.setdefault(kind, body)
                file.seek(4, os.SEEK_CUR)
            else:
                file.seek(length + 4, os.SEEK_CUR)
    if kinds[0] != b"IHDR":
        raise ValueError("it doesn't begin with its header")
    if chunks[b"IHDR"][9] == 3 and b"PLTE" not in kinds:
        raise ValueError("it has no palette")
    return chunks


def _whole_png(path: Path) -> None:
    """ValueError for a PNG whose compressed pixels are fewer than its header says; zlib.error for damaged ones.

    Pillow leaves the missing rows black and says nothing.
    """
    parts = []
    with open(path, "rb") as file:
        file.seek(len(PNG))
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"IHDR":
                header = file.read(length)
                file.seek(4, os.SEEK_CUR)
            elif kind == b"IDAT":
                parts.append(file.read(length))
                file.seek(4, os.SEEK_CUR)
            else:
                file.seek(length + 4, os.SEEK_CUR)
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header[:13])
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    # left, top and the steps of Adam7's passes
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    expected = 0
    for left, top, right, down in passes if interlaced else [(0, 0, 1, 1)]:
        across, rows = -(-(width - left) // right), -(-(height - top) // down)
        if across > 0 and rows > 0:
            expected += rows * (1 + (across * bits + 7) // 8)
    inflater = zlib.decompressobj()
    if len(inflater.decompress(b"".join(parts), expected)) < expected:
        raise ValueError(f"its pixels end before the last of its {height} rows")
    inflater.decompress(inflater.unconsumed_tail, 64)  # the checksum behind them


JUNK = b"\x5a\xa5\x3c\xc3" * 16
NEXT_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")  # not a stuffed 255, nor a restart within a scan
RESTART = re.compile(rb"\xff[\xd0-\xd7]")
ARITHMETIC = (0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)  # its decoder reads on behind the end of a scan
CUT = "its pixels end before the last one"


def _whole_jpeg(path: Path, image: Image.Image) -> None:
    """ValueError for a JPEG that has been cut short and closed again: libjpeg makes up the rest, Pillow is silent.

    What stands behind the last pixel of a scan is never looked at. So bytes are put behind each scan: if they make
    other pixels, there were too few.
    """
    longer = _lengthened(path.read_bytes())
    if longer:
        with Image.open(io.BytesIO(longer), formats=["JPEG"]) as other:
            if other.tobytes() != image.tobytes():
                raise ValueError(CUT)


def _lengthened(content: bytes) -> bytes:
    """A JPEG with JUNK behind each of its scans; nothing of one with arithmetic coding, or that Pillow has to judge.

    ValueError for one whose scans are too few.
    """
    pieces, place, progressive = [content[:2]], 2, False
    missing: dict[int, set[int]] = {}  # coefficients of each component that no scan has given to their last bit
    while found := NEXT_MARKER.search(content, place):
        marker, begin = content[found.end() - 1], found.start()
        if marker in ARITHMETIC:
            return b""
        if marker == 0xD9:  # the end; what stands behind it is no part of the image
            if any(missing.values()):
                raise ValueError(CUT)
            return b"".join([*pieces, content[begin : found.end()]])
        body = found.end() + 2
        place = found.end() + int.from_bytes(content[found.end() : body])
        if place > len(content):
            raise ValueError(CUT)
        pieces.append(content[begin:place])
        if 0xC0 <= marker <= 0xC3:
            progressive = marker == 0xC2
            missing = {content[body + 6 + 3 * number]: set(range(64)) for number in range(content[body + 5])}
        if marker == 0xDA:
            first, last, bits = content[place - 3 : place]
            whole = range(first, last + 1) if progressive else range(64)
            for number in range(content[body]):
                if bits & 15 == 0 or not progressive:
                    missing[content[body + 1 + 2 * number]].difference_update(whole)
            behind = NEXT_MARKER.search(content, place)
            if not behind:
                return b""
            scan, place = content[place : behind.start()], behind.start()
            restarts = RESTART.findall(scan)
            following = (restarts[-1][1] - 0xCF if restarts else 0) + np.arange(8)
            pieces += [scan, JUNK, *(bytes([0xFF, 0xD0 + number % 8]) + JUNK for number in following)]
    return b""


def _to_rgb8(image: Image.Image, path: Path) -> np.ndarray:
    """[H, W, 3] uint8 of a decoded image; ValueError for sample types without a known range."""
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):  # 16-bit grey; for RGB, Pillow itself keeps only the high bytes
        samples = np.asarray(image).astype(np.int64)
        if samples.min() < 0 or samples.max() > 65535:
            raise ValueError("samples of more than 16 bits")
        grey = ((samples + 128) // 257).astype(np.uint8)  # nearest of v / 257: 65535 becomes 255
        if clear is not None:
            grey[samples == clear] = 0
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("1", "L", "RGB") and clear is not None:  # one colour of a PNG, as it is stored
        pixels = np.array(image.convert("RGB"))
        if image.mode == "RGB":
            pixels[(pixels == clear).all(axis=2)] = 0
        else:
            pixels[pixels == _level(image, path, clear)] = 0
        return pixels
    if "A" in image.getbands() or "a" in image.getbands() or clear is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.array(image.convert("RGB"))


def _level(image: Image.Image, path: Path, sample: int) -> int:
    """What 0 … 255 a sample of grey becomes; a PNG's may have 1, 2 or 4 bits."""
    depth = _png(path)[b"IHDR"][8] if image.format == "PNG" else 8
    return min(sample * 255 // (2**depth - 1), 255)  # of 1 bit Pillow says 255 itself
