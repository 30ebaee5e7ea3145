"""gzip and zstd, decompressed as they are read, in bounded memory."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, Protocol

import zstandard

from app.datasets.containers.source import READ_BYTES, Broken, Source

# Four bytes of zstd can become 128 KiB: what one piece becomes has to fit into memory.
PIECE_BYTES = 1024


class Decoder(Protocol):
    """Decompresses one frame (zstd) or member (gzip)."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


class Compression(NamedTuple):
    """A way to compress files, told by its first bytes. `padding` may follow a frame."""

    name: str
    magic: bytes
    decoder: Callable[[], Decoder]
    padding: bytes


COMPRESSIONS = (
    Compression("gzip", b"\x1f\x8b", lambda: zlib.decompressobj(wbits=31), b"\0"),
    Compression("zstd", b"\x28\xb5\x2f\xfd", lambda: zstandard.ZstdDecompressor().decompressobj(), b""),
)


def compression_of(start: bytes) -> Compression | None:
    """How a file that begins so is compressed."""
    return next((found for found in COMPRESSIONS if start.startswith(found.magic)), None)


class Decompressed:
    """A source: what a compressed one holds, frame after frame."""

    def __init__(self, source: Source, compression: Compression) -> None:
        self._pieces = _decompress(source, compression)
        self._ready = bytearray()
        self._broken: Broken | None = None

    def read(self, size: int, /) -> bytes:
        """As `Source.read`; all that can be decompressed is given before `Broken` is raised."""
        try:
            while len(self._ready) < size:
                self._ready += next(self._pieces)
        except StopIteration:
            pass
        except Broken as broken:
            self._broken = broken
        if not self._ready and self._broken:
            raise self._broken
        data = bytes(self._ready[:size])
        del self._ready[:size]
        return data


def _decompress(source: Source, compression: Compression) -> Iterator[bytes]:
    """Yields what `source` holds in pieces, some of them empty. Raises `Broken`."""
    decoder, frames, given = None, 0, 0
    for block in iter(partial(source.read, READ_BYTES), b""):
        for start in range(0, len(block), PIECE_BYTES):
            data = block[start : start + PIECE_BYTES]
            while data:
                if decoder is None:
                    if frames and not (data := data.lstrip(compression.padding)):
                        break
                    decoder = compression.decoder()
                try:
                    piece = decoder.decompress(data)
                except (zlib.error, zstandard.ZstdError) as error:
                    raise _damaged(compression, given, str(error)) from error
                yield piece
                given += len(piece)
                data = b""
                if decoder.eof:
                    data, decoder, frames = decoder.unused_data, None, frames + 1
    if decoder:
        raise _damaged(compression, given, "it ends too early")


def _damaged(compression: Compression, given: int, reason: str) -> Broken:
    return Broken(
        "unreadable_file",
        f"cannot be read: the file's {compression.name} data cannot be decompressed beyond {given} bytes ({reason})",
        "Compress the file again, whole and by itself, or send it as it is.",
    )
