"""Mutants of files, drawn by hypothesis: edits of bytes, of text, and of what formats have inside.

A reader that checks a signature or a checksum never sees what lies behind it unless the mutant has the right
ones. So there are mutants that stay TIFF, PNG, zip or JSON and say something else: sizes beyond all bounds,
other types, parts that are missing, twice there, or in the wrong order.
"""

import copy
import io
import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tifffile
from hypothesis import strategies as st

Mutants = st.SearchStrategy[bytes]

#: Where limits of sizes, counts and offsets lie.
NUMBERS = (
    *(0, 1, 2, 3, 5, 7, 8, 16, 100, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 60_000, 200_000),
    *(0x0FFFFFFF, 0x40000000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFF),
)
# Bytes are drawn evenly; integers would be small ones by preference, and all edits at the beginning.
_PLACES = 1 << 24
_PLACE = st.binary(min_size=3, max_size=3).map(lambda drawn: int.from_bytes(drawn, "big"))

# What happens to a block of some length at some place; the payload is a few bytes to put there.
_EDITS = (
    *("flip", "flip", "flip", "overwrite", "number", "number", "number"),
    *("insert", "remove", "blank", "repeat", "swap", "cut"),
)


def _edit(content: bytearray, kind: str, start: int, end: int, payload: bytes) -> None:
    block = slice(start, end)
    match kind:
        case "flip":
            content[start] ^= 1 << payload[0] % 8
        case "overwrite":
            content[start : start + len(payload)] = payload
        case "number":
            order, number = "<>"[payload[0] % 2], NUMBERS[payload[-1] % len(NUMBERS)]
            content[start : start + 4] = struct.pack(f"{order}I", number)
        case "cut":
            del content[start:]
        case "insert":
            content[start:start] = payload * (end - start)
        case "remove":
            del content[block]
        case "blank":
            content[block] = payload[:1] * (end - start)
        case "repeat":
            content[end:end] = content[block]
        case "swap":
            middle = start + (end - start) * payload[0] // 256
            content[block] = content[middle:end] + content[start:middle]


def edited(content: bytes, tokens: Sequence[bytes] = ()) -> Mutants:
    """One to three edits, half of them where headers are; ``tokens`` are written over places now and then."""
    kinds = (*_EDITS, "token", "token") if tokens else _EDITS
    edit = st.tuples(st.sampled_from(kinds), _PLACE, st.binary(min_size=10, max_size=10))

    def apply(edits: list[tuple[str, int, bytes]]) -> bytes:
        result = bytearray(content)
        for kind, place, (near, length, size, *rest) in edits:
            payload = bytes(rest[: 1 + size % 7])
            if not result:
                result += payload
            start = place * (min(len(result), 512) if near % 2 else len(result)) // _PLACES
            if kind == "token":
                kind, payload = "overwrite", tokens[payload[-1] % len(tokens)]
            _edit(result, kind, start, min(len(result), start + (1 << length % 13)), payload)
        return bytes(result)

    return st.lists(edit, min_size=1, max_size=3).map(apply)


def _often(mutants: Mutants, times: int) -> Mutants:
    """Return mutants that stand for several in an alternative."""
    return st.one_of([mutants.map(bytes) for _ in range(times)])


# TIFF and everything that is TIFF inside.

# Compressions, some of them of one maker's cameras alone; photometric interpretations; bits.
_TAG_VALUES = (
    *(4, 6, 9, 10, 12, 14, 32, 64, 32767, 32769, 32770, 32773, 32803, 32867, 34713, 34892),
    *(34925, 50000, 50001, 52546, 65000, 65535),
)
_TAGS = (
    *(254, 256, 257, 258, 259, 262, 271, 272, 273, 274, 277, 278, 279, 284, 317, 322, 323, 324),
    *(325, 330, 339, 34665, 37500, 33421, 33422, 46275, 50706, 50710, 50711, 50712, 50713),
    *(50714, 50717, 50719, 50720, 50721, 50728, 50740, 50829, 51008, 51022, 65000),
)


def tiff(content: bytes) -> Mutants:
    """Tags of a TIFF with another code, type, count or value; then perhaps other edits."""
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        pages = [page for top in file.pages for page in (top, *(top.pages or ()))]
        order, is_big = file.byteorder, file.is_bigtiff
        tags = [(tag.offset, tag.valueoffset, tag.dtype) for page in pages for tag in page.tags]
        starts, ends = ([f(tag.offset for tag in page.tags) for page in pages] for f in (min, max))
    # Where an entry has its code, type and count, and its value; behind the last is the next page's place.
    size, word = (20, "Q") if is_big else (12, "I")
    fields = ((0, "H", _TAGS), (2, "H", range(20)), (4, word, NUMBERS))
    value = (size - struct.calcsize(word), word, (*NUMBERS, *_TAG_VALUES))

    @st.composite
    def mutants(draw: Callable) -> bytes:
        result = bytearray(content)
        for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
            offset, data, kind = tags[draw(_PLACE) % len(tags)]
            what = draw(st.integers(0, 8))
            if what == 8:
                # A page after the last, perhaps one that was there before.
                at, form = ends[draw(_PLACE) % len(ends)] + size, word
                choice = (*(start - (8 if is_big else 2) for start in starts), *NUMBERS)
            elif what < 3:
                at, form, choice = offset + fields[what][0], *fields[what][1:]
            elif what < 6:
                at, form, choice = offset + value[0], *value[1:]
                # A short number fills the first half of its place.
                form = "H" if kind == 3 else form
            else:
                at, form, choice = data + 4 * (what - 6), "I", value[2]
            number = choice[draw(_PLACE) % len(choice)]
            packed = struct.pack(order + form, number % (1 << 8 * struct.calcsize(form)))
            result[at : at + len(packed)] = packed
        return bytes(result)

    return _often(mutants(), 6) | mutants().flatmap(edited) | edited(content)


#: How other makers' files begin, and what tells them apart: LibRaw has code for each.
RAW_TOKENS = (
    *(b"Canon\0", b"NIKON CORPORATION\0", b"SONY\0", b"PENTAX\0", b"OLYMPUS\0", b"Panasonic\0"),
    *(b"FUJIFILM\0", b"LEICA\0", b"Hasselblad\0", b"Phase One\0", b"SIGMA\0", b"Kodak\0"),
    *(b"MAMIYA\0", b"SAMSUNG\0", b"Apple\0", b"DJI\0", b"GoPro\0", b"Sinar\0", b"Leaf\0"),
    *(b"FUJIFILMCCD-RAW ", b"\0MRM", b"FOVb", b"ftypcrx ", b"IIRO", b"IIRS", b"IIU\0", b"MMOR"),
    *(b"II*\0\x10\0\0\0CR\2\0", b"HEAPCCDR", b"IIII", b"MMMM", b"ARECOYK", b"qktk", b"BM"),
    *(b"NOKIARAW", b"DSC-Image", b"PWAD", b"\xff\xd8\xff\xe1", b"\xff\xc3", b"\xff\xc4"),
)

# PNG.

_BOMB = zlib.compress(bytes(1 << 26), 9)
_PNG_CHUNKS = (
    *((b"zTXt", b"a\0\0" + _BOMB), (b"iCCP", b"a\0\0" + _BOMB), (b"iTXt", b"a\0\1\0\0\0" + _BOMB)),
    *((b"IDAT", _BOMB), (b"PLTE", bytes(768)), (b"PLTE", b"\0"), (b"tRNS", b"\0\0"), (b"tRNS", b"")),
    *((b"gAMA", bytes(4)), (b"acTL", b"\xff\xff\xff\xff\0\0\0\0"), (b"fcTL", bytes(26)), (b"fdAT", bytes(9))),
    *((b"IHDR", bytes(13)), (b"IEND", b""), (b"eXIf", b"MM\0*\xff\xff\xff\xff"), (bytes(4), b"")),
)


def _chunks_of(content: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 8
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def _png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in chunks:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        parts.append(struct.pack(">I", len(data)) + kind + data + checksum)
    return b"".join(parts)


def png(content: bytes) -> Mutants:
    """Chunks of a PNG edited, taken out, repeated, exchanged, or put in, with the right checksums."""
    whole = _chunks_of(content)
    pixels = zlib.decompress(b"".join(data for kind, data in whole if kind == b"IDAT"))
    changes = st.sampled_from(("edit", "edit", "size", "size", "form", "pixels", "drop", "add", "swap"))

    @st.composite
    def mutants(draw: Callable) -> bytes:
        chunks = list(whole)
        for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
            if not chunks:
                break
            change, at, to = draw(changes), draw(_PLACE) % len(chunks), draw(_PLACE)
            kind, data = chunks[at]
            if change == "edit":
                chunks[at] = kind, draw(edited(data))
            elif change in ("size", "form") and chunks[0][0] == b"IHDR" and len(chunks[0][1]) == 13:
                head, number = bytearray(chunks[0][1]), NUMBERS[to % len(NUMBERS)]
                if change == "size":
                    struct.pack_into(">I", head, draw(st.sampled_from((0, 4))), number)
                else:
                    head[draw(st.integers(8, 12))] = number % 256
                chunks[0] = b"IHDR", bytes(head)
            elif change == "pixels":
                chunks[at] = b"IDAT", zlib.compress(draw(edited(pixels)))
            elif change == "drop":
                del chunks[at]
            elif change == "add":
                chunks.insert(at, (*whole, *_PNG_CHUNKS)[to % (len(whole) + len(_PNG_CHUNKS))])
            else:
                other = to % len(chunks)
                chunks[at], chunks[other] = chunks[other], chunks[at]
        return _png_of(chunks)

    return _often(mutants(), 3) | edited(content)


# NPY.

_KINDS = (
    *("'|O'", "'|u1'", "'>u2'", "'<f2'", "'<f4'", "'<f8'", "'<f16'", "'<i4'", "'<c8'", "'|b1'"),
    *("'|S9'", "'<U4'", "'<M8[ns]'", "'|V8'", "'|V0'", "'x'", "''", "None", "4"),
    *("[('a', '|u1')]", "[('a', '|O')]", "('<f4', (2,))"),
)
_SHAPES = (
    *("(24, 32)", "(2, 2)", "()", "(0, 4)", "(768,)", "(-2, -384)", "(24, 32, 1)", "(12, 32, 2)"),
    *("(2.5, 4)", "4", "[24, 32]", "(True, 2)", "(1099511627776,)", "(99999999999, 4)"),
    *("(4000000, 4000)", "(2, 9223372036854775807)"),
)
_HEADS = ("[" * 99, "(" * 5000, "9" * 5000, "\0", "{1: 2}", "{}", "ü", "{'descr': '|u1'}")


def npy(content: bytes) -> Mutants:
    """The head of an NPY file with another type, order or shape, and the right length."""
    length = struct.unpack_from("<H", content, 8)[0]
    head, data = content[10 : 10 + length].decode("latin-1"), content[10 + length :]
    form = r"\{'descr': (.*), 'fortran_order': (.*), 'shape': (.*), \}\s*"
    kind, order, shape = re.fullmatch(form, head).groups()

    def whole(head: str) -> bytes:
        packed = head.encode("latin-1")
        return content[:8] + struct.pack("<H", len(packed)) + packed + data

    # One is as it was now and then, so that the others are looked at.
    kinds, shapes = (st.sampled_from(_KINDS) | st.just(kind), st.sampled_from(_SHAPES) | st.just(shape))
    orders = st.sampled_from((order, order, "True", "False", "None", "2"))
    heads = st.builds("{{'descr': {}, 'fortran_order': {}, 'shape': {}, }}\n".format, kinds, orders, shapes)
    return edited(content) | _often(heads.map(whole), 3) | st.sampled_from(_HEADS).map(whole)


# Zip archives.


def archive(content: bytes) -> Mutants:
    """Members of a zip edited, under their right checksums; or records of the zip with other numbers."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        members = [(info.filename, file.read(info)) for info in file.infolist()]
    marks = [match.start() for match in re.finditer(rb"PK(\x01\x02|\x03\x04|\x05\x06)", content)]

    @st.composite
    def mutants(draw: Callable) -> bytes:
        changed = draw(_PLACE) % len(members)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            for number, (name, data) in enumerate(members):
                file.writestr(name, draw(edited(data)) if number == changed else data)
        return buffer.getvalue()

    @st.composite
    def records(draw: Callable) -> bytes:
        result = bytearray(content)
        for _ in range(draw(st.integers(1, 3))):
            at = marks[draw(_PLACE) % len(marks)] + 4 + draw(st.integers(0, 45))
            form = draw(st.sampled_from(("<H", "<I")))
            number = (*NUMBERS, 9, 12, 14, 93, 95, 99)[draw(_PLACE) % (len(NUMBERS) + 6)]
            packed = struct.pack(form, number % (1 << 8 * struct.calcsize(form)))
            result[at : at + len(packed)] = packed
        return bytes(result)

    names = (b"../../x", b"/etc/x", b"C:\\x", b"..\\..\\x", b"\0", b"x/" * 20, b"\xff\xfe", b"./.")
    return mutants() | records() | edited(content, names)


# Values: what JSON and YAML hold.

# They stand for text that can't be had from values; see `_as_json` and `_as_yaml`.
_DEEP, _LAUGHS, _MERGES = "<deep>", "<laughs>", "<merges>"
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 2**31, -(2**63), 10**9, 10**30, 10**400, 0.5, -0.0),
    *(1e-320, 1e308, math.nan, math.inf, -math.inf, "", "x", "0", "1e400", "nan", "\0"),
    *("ü\ud800", "../../x", "A" * 100_000, [], {}, [[]], [None] * 3, [1, 2, 3, 4], [1e308] * 3),
    *({"": {}}, [10**6] * 3, [-1], _DEEP, [_DEEP], _LAUGHS, _MERGES),
)


def _spots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place in nested lists and mappings, as the holder and the key in it."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _spots(inner)


@st.composite
def _changed(draw: Callable, value: Any, values: Sequence[Any]) -> Any:
    value = copy.deepcopy(value)
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        spots = list(_spots(value)) if isinstance(value, dict | list) else []
        if not spots:
            break
        holder, key = spots[draw(_PLACE) % len(spots)]
        drawn = copy.deepcopy(values[draw(_PLACE) % len(values)])
        change = draw(st.integers(0, 9))
        if change < 3 and isinstance(holder[key], int | float) and abs(holder[key]) < 1e300:
            holder[key] *= (-1, 0.5, 0.99, 1.5, 3, 1e6)[draw(_PLACE) % 6]
        elif change < 6:
            holder[key] = drawn
        elif change == 6:
            del holder[key]
        elif change == 7:
            holder[key] = [holder[key]]
        elif change == 8:
            other, name = spots[draw(_PLACE) % len(spots)]
            holder[key] = copy.deepcopy(other[name])
        elif isinstance(holder, dict):
            holder[str(drawn)[:40]] = holder.pop(key)
        else:
            holder.append(drawn)
        if change == 9 and draw(st.integers(0, 9)) == 0:
            value = drawn
    return value


def _as_json(value: Any) -> str:
    """Return values as JSON, also what is nested deeper than `json` would go."""
    # Up to 4300 digits a number may have, and this is for JSON to say.
    return json.dumps(value).replace(json.dumps(_DEEP), "[" * 20_000 + "]" * 20_000)


_JSON_WORDS = (
    *("null", "true", "NaN", "-Infinity", "1e999", "-", "0", "00", "1.", "9" * 400, "9" * 5000),
    *('"', "{", "}", "[" * 20_000, '{"a":' * 20_000, ",", ":", "\\u", '"\\ud800"', "/* */", "'x'"),
    *("\0", "\ufeff", "\u2028"),
)


def values_json(content: bytes, values: Sequence[Any] = ()) -> Mutants:
    """JSON with other values at some places, those that its readers look at too, or no JSON."""
    changed = _changed(json.loads(content), (*values, *_VALUES)).map(_as_json).map(str.encode)
    return _often(changed, 4) | text(content.decode(), _JSON_WORDS) | edited(content)


def tensors(content: bytes) -> Mutants:
    """A safetensors file whose head names other types, shapes and offsets, and has the right length."""
    length = struct.unpack_from("<Q", content)[0]
    head, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    types = ("F16", "BF16", "F64", "I64", "BOOL", "U8", "F8_E4M3", "F4", "C64", "U16")
    values = (*types, [1], [3, 3], [0], [2**40])

    def whole(head: Any) -> bytes:
        packed = _as_json(head).encode()
        return struct.pack("<Q", len(packed)) + packed + data

    return edited(content) | _often(_changed(head, (*values, *_VALUES)).map(whole), 2)


def _nested(first: str, more: str) -> str:
    """Return YAML of a few lines that is endless written out: each part is nine of the one before."""
    parts = [f"&a0 {first}"]
    for number in range(12):
        parts.append(f"&a{number + 1} " + more.format(", ".join([f"*a{number}"] * 9)))
    return f"[{', '.join(parts)}]"


def _as_yaml(value: Any) -> str:
    text = _as_json(value).replace(json.dumps(_LAUGHS), _nested("[x]", "[{}]"))
    return text.replace(json.dumps(_MERGES), _nested("{x: 1}", "{{<<: [{}]}}"))


_YAML_WORDS = (
    *("~", "yes", ".nan", "-.inf", "0x", "1_000", "1:30:00", "2024-99-99", "2024-01-01", "9" * 400),
    *("9" * 5000, "&a", "*a", "&a [*a]", "<<: *a", "!!python/object/apply:os.abort []", "!x y"),
    *("!!binary x", "!!set {a}", "---", "...", "%YAML 9.9", "? [a]\n: b", "[" * 2000, "{" * 2000),
    *("- " * 2000, "\t", "|", ">", "#", "'", '"', "\0", "\x85", "\ufeff", "\u2028", "A" * 50_000),
    *("{1: 2, a: 3}", "[[1]]"),
)


def values_yaml(content: bytes, decoded: dict[str, Any], values: Sequence[Any] = ()) -> Mutants:
    """YAML below its comment with other values at some places, or text that is YAML no more."""
    comment = "".join(line for line in content.decode().splitlines(keepends=True) if line.startswith("#"))
    changed = _changed(decoded, (*values, *_VALUES)).map(_as_yaml)
    whole = changed.map(lambda text: f"{comment}{text}\n".encode())
    return _often(whole, 3) | _often(text(content.decode(), _YAML_WORDS), 2) | edited(content)


# Text.

CSV_WORDS = (
    *('"', '""', ",", ",,,", "\r", "\r\n", "\n", ";", "\t", "NaN", "", " ", "file", "label"),
    *("group", "\0", "#", "../x", "/etc/passwd", "1e999", "9" * 400, "A" * 300_000, "ü", "\ufeff"),
    *("," * 20_000, "\u2028", "\ud800"),
)
_ENCODINGS = (*("utf-8",) * 8, "utf-8-sig", "utf-16", "utf-32", "latin-1")


def text(content: str, words: Sequence[str]) -> Mutants:
    """Text with some of its words replaced, taken out, repeated or exchanged; in another encoding."""
    parts = re.findall(r"\w+|\s+|.", content, re.DOTALL)
    edit = st.tuples(st.integers(0, 5), _PLACE, _PLACE)

    def apply(edits: list[tuple[int, int, int]], encoding: str) -> bytes:
        result = list(parts)
        for change, place, other in edits:
            at, to = place * len(result) // _PLACES, other * len(result) // _PLACES
            if change < 2:
                result[at : at + 1] = [words[other % len(words)]]
            elif change == 2:
                result.insert(at, words[other % len(words)])
            elif change == 3:
                del result[at : at + 1 + other % 3]
            elif change == 4:
                result[at:at] = result[min(at, to) : max(at, to)]
            elif result:
                result[at], result[to] = result[to], result[at]
        return "".join(result).encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")

    return st.builds(apply, st.lists(edit, min_size=1, max_size=4), st.sampled_from(_ENCODINGS))
