"""Files that nobody should have to read: 300 of them, made by rules, none of which holds a picture fit for training."""

import io
import struct
import tarfile
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

FORMATS = {"png": "PNG", "jpg": "JPEG", "gif": "GIF", "bmp": "BMP", "tif": "TIFF", "webp": "WEBP", "ppm": "PPM"}


def picture(suffix: str, size: int = 24) -> bytes:
    """A noisy picture, so that no format makes it tiny."""
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, FORMATS[suffix])
    return buffer.getvalue()


def hostile_pictures() -> Iterator[tuple[str, bytes]]:
    """(file name, content) of 240 files with the suffix of a picture."""
    for suffix in FORMATS:
        whole = picture(suffix)
        for percent in range(4, 92, 4):  # 22 each
            yield f"cut_{percent}.{suffix}", whole[: len(whole) * percent // 100]
        yield f"empty.{suffix}", b""
        yield f"zeros.{suffix}", bytes(500)
        yield f"text.{suffix}", b"To be, or not to be, that is the question.\n" * 20
        yield f"random.{suffix}", np.random.default_rng(1).bytes(700)
    for number, (width, height) in enumerate(
        [(2**31 - 1, 2**31 - 1), (60_000, 60_000), (0, 0), (1, 2**30), (2**30, 1)]
    ):
        yield f"huge_{number}.png", _png(width, height)
        yield f"huge_{number}.bmp", _bmp(width, height)
        yield f"huge_{number}.gif", b"GIF89a" + struct.pack("<HH", width % 65536, height % 65536) + bytes(3)
        yield f"huge_{number}.ppm", f"P6 {width} {height} 255\n".encode()
    for number, content in enumerate(
        [
            b"\x7fELF" + bytes(300),
            b"MZ" + bytes(300),
            b"PK\x03\x04" + bytes(300),
            b"%PDF-1.4\n%%EOF",
            b"%!PS-Adobe-3.0 EPSF-3.0\n(%pipe%touch hacked) (w) file\n",
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            b"<?php system('touch hacked'); ?>",
            b"\x80\x04\x95cos\nsystem\n(S'touch hacked'\ntR.",
            b"\x93NUMPY\x01\x00" + bytes(120),
            b"RIFF\xff\xff\xff\xffWEBPVP8 " + bytes(40),
            b"II*\x00\xff\xff\xff\xff",
            b"MM\x00*\x00\x00\x00\x08" + b"\xff" * 200,
            b"\xff\xd8\xff\xe0" + bytes(200),
            b"\xff\xd8\xff\xd9",
            b"\x89PNG\r\n\x1a\n",
            _png(8, 8, zlib.compress(bytes(3))),
            _png(8, 8, b"no zlib"),
            _png(8, 8, zlib.compress(np.random.default_rng(2).bytes(200))[:60]),
        ]
    ):
        yield f"other_{number}.jpg", content
    count = 7 * 26 + 20 + 18
    for number in range(240 - count):
        whole = bytearray(picture("png"))
        whole[60 + 37 * number] ^= 0xFF  # every chunk of a PNG has a checksum
        yield f"flipped_{number}.png", bytes(whole)


def broken_exif(size: int = 24) -> Iterator[tuple[str, bytes]]:
    """20 JPEGs with good pixels and metadata of noise: these may be read, but only as the picture they are."""
    clean = picture("jpg", size)
    for number in range(20):
        noise = b"Exif\x00\x00" + np.random.default_rng(number).bytes(30 + 7 * number)
        if number % 2:
            noise = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff" + noise[6:]
        yield f"exif_{number}.jpg", clean[:2] + b"\xff\xe1" + struct.pack(">H", len(noise) + 2) + noise + clean[2:]


def hostile_shards(good: bytes) -> Iterator[tuple[str, bytes]]:
    """40 tar files without one sample that may be trained on."""
    names = ["../../escape.png", "/tmp/escape.png", "a/../../../escape.png", "..\\..\\escape.png", "~/escape.png"]
    for number, name in enumerate(names):  # what lies under such names is no picture
        yield f"path_{number}.tar", _tar({name: b"touched", name[:-4] + ".cls": b"0"})
    for number, kind in enumerate(
        [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE + b""]
    ):
        member = tarfile.TarInfo("link.png")
        member.type, member.linkname = kind, "/etc/passwd"
        yield f"link_{number}.tar", _tar({"link.png": member})
    whole = _tar({"a.png": good, "a.cls": b"0"})
    for number, cut in enumerate([0, 1, 100, 511, 512, 600, 700, 900]):
        yield f"cut_{number}.tar", whole[:cut]
    for number in range(5):
        yield f"noise_{number}.tar", np.random.default_rng(number).bytes(2000)
    for number, size in enumerate([b"77777777777\0", b"-0000000001\0", b"\x80" + b"\xff" * 11, b"zzzzzzzzzzz\0"]):
        broken = bytearray(whole)
        broken[124:136] = size
        broken[148:156] = f"{sum(broken[:148]) + 8 * 32 + sum(broken[156:512]):06o}\0 ".encode()
        yield f"size_{number}.tar", bytes(broken)
    for number, label in enumerate([b"", b"-1", b"one", b"1e9", b"99999999999", b"\xff\xfe", b"0 1", b"None"]):
        yield f"label_{number}.tar", _tar({"a.png": good, "a.cls": label})
    yield "two.tar", _tar({"a.png": good, "a.jpg": good, "a.cls": b"0"})
    yield "none.tar", _tar({})
    yield "hidden.tar", _tar({".a.png": good, "._b.png": good})
    yield "suffixless.tar", _tar({"picture": good, "folder/picture": good})


def _tar(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = content if isinstance(content, bytes) else b""
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _png(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _bmp(width: int, height: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width % 2**31, height % 2**31, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info
