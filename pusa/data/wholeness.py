"""Whether a file ends where its container says: a download that broke off is known by its bytes.

Decoders pass over the missing end in silence. Knows MP4, Matroska, MPEG-TS and GIF; of other
formats it says nothing.
"""

from typing import BinaryIO

from pusa.data.media import Media

_MP4_FIRST = (b"ftyp", b"moov", b"mdat", b"moof", b"wide", b"free", b"skip", b"styp")
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"  # RFC 8794 and RFC 9559
_TS_SYNC, _TS_PACKETS = 0x47, (188, 192)  # bytes; 192 on Blu-ray and in cameras (M2TS)


def shortfall(media: Media) -> str:
    """What is missing at the end of a file, in words; "" if nothing is known to be."""
    size = media.num_bytes()
    with media.open() as stream:
        head = stream.read(16)
        if head[4:8] in _MP4_FIRST:
            return _bytes_missing(_mp4_end(stream, size), size)
        if head[:4] == _EBML:
            return _bytes_missing(_matroska_end(stream, size), size)
        if head[:6] in (b"GIF87a", b"GIF89a"):
            stream.seek(max(0, size - 64))
            whole = stream.read(64).rstrip(b"\0").endswith(b";")
            return "" if whole else "the end mark of a GIF is missing"
        if head[:1] == bytes([_TS_SYNC]) or head[4:5] == bytes([_TS_SYNC]):
            return "" if any(size % n == 0 for n in _TS_PACKETS) else "it ends within a packet"
    return ""


def _bytes_missing(end: int, size: int) -> str:
    return f"its header promises {end} bytes, {size} are there" if end > size else ""


def _mp4_end(stream: BinaryIO, size: int) -> int:
    """Where the last box on the top level ends. ISO/IEC 14496-12, section 4.2."""
    place = 0
    while place < size:
        stream.seek(place)
        head = stream.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:  # the size stands after the type
            length = int.from_bytes(head[8:16], "big")
        if length == 0 and len(head) >= 8:  # to the end of the file
            return size
        if length < 8:
            return place + 8 if len(head) < 8 else size
        place += length
    return place


def _matroska_end(stream: BinaryIO, size: int) -> int:
    """Where the segment ends; 0 if it was written without knowing."""
    place = 0
    while place < size:
        stream.seek(place)
        head = stream.read(12)
        first = head[4] if len(head) > 4 else 0
        width = 9 - first.bit_length()  # of the size: zeros before the first one, and it
        if first == 0 or len(head) < 4 + width:
            return place + 12
        length = int.from_bytes(head[4 : 4 + width], "big") - (1 << 7 * width)
        if length == (1 << 7 * width) - 1:
            return 0
        place += 4 + width + length
        if head[:4] == _SEGMENT:
            return place
    return place
