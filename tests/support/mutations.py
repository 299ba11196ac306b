"""Damaged files: small valid seeds of every accepted format, and what a seeded random choice makes of them.

    for case in cases(seed=1, count=5000): …

The same seed gives the same cases on one installation; encoders of other releases write other bytes.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from model.network.architecture import named_features
from tests.support.seed_files import CONFIG, packed, quiet_zip, seeds, zip_of

KINDS = ("picture", "video", "archive", "labels", "boxes", "prior", "version", "json")
# more of those with more ways to be wrong
_WEIGHTS = {"picture": 26, "video": 10, "archive": 18, "labels": 18, "boxes": 8, "prior": 6, "version": 10, "json": 4}
_SLOW = frozenset(("labels/h5", "labels/slp"))  # each is read in a process of its own: one in twenty of the labels
_HUGE = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "-1e308",
    "1e308",
    "9" * 400,
    "-1",
    "0",
    "0x10",
    "",
    "2147483648",
    "1e-320",
)
_INTEGERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**63, 2**64 - 1)
_NAMES = (
    *(
        "../evil.png",
        "/etc/passwd.png",
        "C:\\evil.png",
        "..\\..\\evil.png",
        "a/../../b.png",
        "x\0y.png",
        "",
        ".",
        "..",
        "CON",
    ),
    *(
        "\u202egnp.exe",
        "a" * 5000 + ".png",
        "é.png",
        "e\u0301.png",
        "a\r\nb: c.png",
        "%2e%2e/x.png",
        "|id.png",
        "\ud800.png",
    ),
    *("images/", "a//b.png", "~/.ssh/x.png", "$(id).png", ".png", "a.png.exe", "a.zip", "\ufeff.png", " .png", "a.PNG"),
)


@dataclass(frozen=True)
class Case:
    """A damaged file.

    Attributes:
        kind: what it is sent as, one of KINDS.
        format: of the seed, such as "picture/png".
        how: what was done to it.
        name: its file name.
    """

    number: int
    kind: str
    format: str
    how: str
    name: str
    data: bytes

    def __str__(self) -> str:
        return f"case {self.number}: {self.format} {self.how}"


def cases(seed: int, count: int, kinds: tuple[str, ...] = KINDS) -> Iterator[Case]:
    """Yield damaged files."""
    rng = random.Random(seed)
    found = seeds()
    by_kind = {kind: [name for name in found if name.startswith(f"{kind}/")] for kind in kinds}
    for number in range(count):
        kind = rng.choices(kinds, [_WEIGHTS[kind] for kind in kinds])[0]
        chosen = rng.choice(by_kind[kind])
        while chosen in _SLOW and rng.random() < 0.85:
            chosen = rng.choice(by_kind[kind])
        own = random.Random(f"{seed} {number}")  # a case does not depend on those before it
        how, data = _mutate(chosen, found, own)
        yield Case(number, kind, chosen, how, _file_name(chosen, found, own), data)


def _file_name(chosen: str, found: dict[str, bytes], rng: random.Random) -> str:
    plain = f"a.{chosen.split('/')[1]}"
    if rng.random() < 0.6:
        return plain
    return rng.choice((*_NAMES, *(f"a.{other.split('/')[1]}" for other in found)))


def _mutate(chosen: str, found: dict[str, bytes], rng: random.Random) -> tuple[str, bytes]:
    data = found[chosen]
    ways: list[Callable[[bytes, random.Random], bytes]] = list(_BYTES)
    form = _FORMS.get(chosen, ())
    if form and rng.random() < 0.75:
        ways = list(form)
    elif rng.random() < 0.05:
        other = rng.choice(sorted(found))
        return f"replaced by {other}", found[other]
    way = rng.choice(ways)
    done = way(data, rng)
    if rng.random() < 0.2:
        more = rng.choice(_BYTES)
        return f"{way.__name__} and {more.__name__}", more(done, rng)
    return way.__name__, done


# bytes of any format


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 64)) if out else 0):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def set_integer(data: bytes, rng: random.Random, first: int = 0) -> bytes:
    """Write an extreme number over a field, more often near the start, where headers are."""
    out, width = bytearray(data), rng.choice((1, 2, 4, 8))
    value = rng.choice(_INTEGERS) & (2 ** (8 * width) - 1)
    at = rng.randrange(max(1, min(len(out), rng.choice((16, 64, 512, len(out) or 1)))))
    out[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))
    return bytes(out)


def swap_blocks(data: bytes, rng: random.Random) -> bytes:
    a, b, c, d = sorted(rng.randrange(len(data) + 1) for _ in range(4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def remove_block(data: bytes, rng: random.Random) -> bytes:
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:a] + data[b:]


def repeat_block(data: bytes, rng: random.Random) -> bytes:
    a = rng.randrange(len(data) + 1)
    b = min(len(data), a + rng.choice((1, 16, 256, 4096)))
    return data[:b] + data[a:b] * rng.choice((1, 2, 30, 500)) + data[b:]


def fill_block(data: bytes, rng: random.Random) -> bytes:
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:a] + bytes([rng.choice((0, 255, 65))]) * (b - a) + data[b:]


def insert_noise(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 7, 64, 5000))) + data[at:]


def append(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice((data, rng.randbytes(1000), bytes(100_000), b"PK\x05\x06" + bytes(18)))


_BYTES = (truncate, flip_bits, set_integer, swap_blocks, remove_block, repeat_block, fill_block, insert_noise, append)


# JSON and tables


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in _places(part, (*path, key)))]


_ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1e308,
        -1e308,
        10**400,
        2**63,
        1e-320,
        float("nan"),
        float("inf"),
        "",
        "nan",
        "1e400",
        "\0",
    ),
    *(
        "\u202e",
        "a" * 100_000,
        "\ud800",
        [],
        {},
        [[]],
        {"": {}},
        "../../etc/passwd",
        "http://169.254.169.254/",
        [0] * 10_000,
    ),
)


def change_value(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove or repeat one value of JSON."""
    document = json.loads(data)
    places = [path for path in _places(document) if path]
    *way, last = rng.choice(places)
    holder = document
    for key in way:
        holder = holder[key]
    how = rng.randrange(4)
    if how == 0:
        del holder[last]
    elif how == 1 and isinstance(holder, list):
        holder += [copy.deepcopy(holder[last])] * rng.choice((1, 2, 3000))
    else:
        holder[last] = copy.deepcopy(rng.choice(_ODD))
    return json.dumps(document).encode()


def change_number(data: bytes, rng: random.Random) -> bytes:
    """Replace one number in text."""
    text = data.decode("latin-1")
    starts = [
        at for at in range(1, len(text)) if text[at].isdigit() and not (text[at - 1].isalnum() or text[at - 1] in ".-_")
    ]
    if not starts:
        return data
    at = end = rng.choice(starts)
    while end < len(text) and (text[end].isdigit() or text[end] in ".eE+-"):
        end += 1
    return (text[:at] + rng.choice(_HUGE) + text[end:]).encode("latin-1")


def nest(data: bytes, rng: random.Random) -> bytes:
    depth, (left, right) = rng.choice((50, 900, 5000, 200_000)), rng.choice((("[", "]"), ('{"a":', "}")))
    nested = left * depth + "1" + right * depth
    return rng.choice((nested.encode(), data.rstrip()[:-1] + b', "x": ' + nested.encode() + b"}"))


def encode(data: bytes, rng: random.Random) -> bytes:
    text = data.decode("utf-8", "replace")
    name = rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7", "cp037", "latin-1"))
    return text.encode(name, "replace")


def change_lines(data: bytes, rng: random.Random) -> bytes:
    """Repeat, remove, join or swap lines, or change what separates cells."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            lines[at:at] = [lines[at]] * rng.choice((1, 2, 5000))
        case 1:
            del lines[at]
        case 2:
            lines[at] += rng.choice((b",", b";", b"\t", b'"', b"\0", b"," * 10_000, b'"' + b"x" * 200_000))
        case 3:
            rng.shuffle(lines)
        case 4:
            return data.replace(b",", rng.choice((b";", b"\t", b"|", b" ", b",,")))
        case _:
            return data.replace(b"\n", rng.choice((b"\r", b"\r\n", b"\n\n", b"\x0b", b"\x85")))
    return b"\n".join(lines)


def change_name(data: bytes, rng: random.Random) -> bytes:
    """Replace a picture's name."""
    found = rng.choice((b"0.png", b"1.png", b"2.png", b"nose", b"tail"))
    return data.replace(found, rng.choice(_NAMES).encode("utf-8", "surrogatepass"))


_JSON = (change_value, change_value, change_value, change_number, nest, encode, change_name)
_TABLE = (change_lines, change_number, encode, change_name)


# archives


def _entries(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def zip_names(data: bytes, rng: random.Random) -> bytes:
    entries = _entries(data)
    for _ in range(rng.choice((1, 3))):
        at = rng.randrange(len(entries))
        entries[at] = (rng.choice((*_NAMES, entries[0][0])), entries[at][1])
    return quiet_zip(entries, rng if rng.random() < 0.5 else None)


def zip_fields(data: bytes, rng: random.Random) -> bytes:
    """Write an extreme number into a record of a zip."""
    out = bytearray(data)
    mark = rng.choice((b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"))
    places = [at for at in range(len(out) - 4) if out[at : at + 4] == mark]
    if not places:
        return data
    at, width = rng.choice(places) + rng.randrange(4, 46), rng.choice((1, 2, 4))
    out[at : at + width] = (rng.choice(_INTEGERS) & (2 ** (8 * width) - 1)).to_bytes(width, "little")
    return bytes(out)


def zip_bomb(data: bytes, rng: random.Random) -> bytes:
    entries = _entries(data)
    match rng.randrange(4):
        case 0:
            return zip_of([*entries, ("big.png", bytes(rng.choice((2**20, 2**26, 2**27))))], deflated=True)
        case 1:
            return zip_of([(f"{n}.png", b"") for n in range(3000)])
        case 2:
            inner = data
            for _ in range(rng.choice((1, 3, 20))):
                inner = zip_of([("a.zip", inner), ("b.png", entries[0][1])])
            return inner
        case _:  # entries that overlap: each is all of the first one's bytes
            out = bytearray(data)
            places = [at for at in range(len(out) - 4) if out[at : at + 4] == b"PK\x01\x02"]
            for at in places:
                out[at + 42 : at + 46] = bytes(4)
            return bytes(out)


def tar_members(data: bytes, rng: random.Random) -> bytes:
    """Add members that no picture archive has, or odd names and sizes."""
    packed = data[:2] == b"\x1f\x8b"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as given, tarfile.open(fileobj=buffer, mode="w") as archive:
        for info in given.getmembers():
            file = given.extractfile(info)
            if rng.random() < 0.3:
                info.name = rng.choice([name for name in _NAMES if "\0" not in name and "\ud800" not in name]) or "x"
            if rng.random() < 0.2:
                info.type = rng.choice(
                    (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, b"S", b"g", b"?")
                )
                info.linkname = rng.choice(("/etc/passwd", "../../x", "a.png", "x" * 300))
            if rng.random() < 0.1:
                info.pax_headers = {
                    rng.choice(("size", "path", "GNU.sparse.map", "hdrcharset")): rng.choice(("-1", "9" * 40, "../x"))
                }
            archive.addfile(info, file)
    done = buffer.getvalue()
    if rng.random() < 0.3:
        done = set_integer(done, rng)
    return gzip.compress(done, 1) if packed else done


def gzip_bomb(data: bytes, rng: random.Random) -> bytes:
    plain = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    return gzip.compress(plain + bytes(rng.choice((2**20, 2**26))), 1) + rng.choice(
        (b"", gzip.compress(plain, 1), b"junk")
    )


def zip_content(data: bytes, rng: random.Random) -> bytes:
    """Damage the files in it, not the zip."""
    entries = _entries(data)
    return zip_of([(name, rng.choice(_BYTES)(file, rng) if rng.random() < 0.5 else file) for name, file in entries])


_ZIP = (zip_names, zip_fields, zip_bomb, zip_content)
_TAR = (tar_members, gzip_bomb)


# versions


def version_document(data: bytes, rng: random.Random) -> bytes:
    """Change a value in a document of a version; the checksums are right."""
    files = dict(_entries(data))
    name = rng.choice([name for name in files if name.endswith(".json")])
    files[name] = rng.choice((change_value, change_value, change_number, nest))(files[name], rng)
    try:
        return packed(files)
    except (ValueError, RecursionError):  # the manifest itself is no JSON any more
        return zip_of(list(files.items()))


def version_tensors(data: bytes, rng: random.Random) -> bytes:
    """Exchange tensors, or give them absurd values; the checksums are right."""
    files = dict(_entries(data))
    tensors = {name: np.array(value) for name, value in load(files["weights.safetensors"]).items()}
    a, b = rng.sample(sorted(tensors), 2)
    match rng.randrange(5):
        case 0:
            tensors[a], tensors[b] = tensors[b], tensors[a]
        case 1:
            tensors[a] = np.full_like(tensors[a], rng.choice((-1, 0, 1, 100)))
        case 2:
            number = rng.choice((1e30, -1e30, 3e38, np.nan, np.inf, 1e-40, 1e7))
            tensors[a] = (
                np.full_like(tensors[a], number) if tensors[a].dtype.kind == "f" else tensors[a] - 1 * (tensors[a] == 0)
            )
        case 3:
            tensors[a] = tensors[a].astype(rng.choice((np.float64, np.float16, np.int8)))
        case _:
            tensors[a] = np.repeat(tensors[a].reshape(-1), 2)
    facts = json.dumps({"step": 10, "features": named_features(CONFIG)})
    files["weights.safetensors"] = save({name: np.asarray(value) for name, value in tensors.items()}, {"facts": facts})
    return packed(files)


def version_header(data: bytes, rng: random.Random) -> bytes:
    """Change the header of the weights; the checksums are right."""
    files = dict(_entries(data))
    weights = files["weights.safetensors"]
    size = int.from_bytes(weights[:8], "little")
    header = change_value(weights[8 : 8 + size], rng)
    files["weights.safetensors"] = (
        struct.pack("<Q", rng.choice((len(header), len(header), 2**40, 0))) + header + weights[8 + size :]
    )
    return packed(files)


def version_members(data: bytes, rng: random.Random) -> bytes:
    """Remove, rename or add a file."""
    files = dict(_entries(data))
    name = rng.choice(list(files))
    content = files[name] if name == "manifest.json" else files.pop(name)
    files[rng.choice((*_NAMES, "weights.pkl", "landmarks/a.json", "keypoint-names.json", "history.json"))] = content
    return packed(files)


_VERSION = (
    version_document,
    version_document,
    version_tensors,
    version_tensors,
    version_header,
    version_members,
    zip_fields,
)
_FORMS: dict[str, tuple[Callable[[bytes, random.Random], bytes], ...]] = {
    "archive/zip": _ZIP,
    "archive/deflated.zip": _ZIP,
    "archive/tar": _TAR,
    "archive/tar.gz": _TAR,
    "labels/csv": _TABLE,
    "labels/dlc.csv": _TABLE,
    "labels/coco.json": _JSON,
    "labels/studio.json": _JSON,
    "labels/samples.json": _JSON,
    "boxes/csv": _TABLE,
    "boxes/coco.json": _JSON,
    "boxes/detector.json": _JSON,
    "prior/json": _JSON,
    "json/train.json": _JSON,
    "json/alias.json": _JSON,
    "json/names.json": _JSON,
    "version/zip": _VERSION,
}
