"""Ways to damage a file, drawn from a generator; each takes the bytes of a whole file and returns others."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

Damage = Callable[[bytes, random.Random], bytes]


def flip_bits(content: bytes, draw: random.Random) -> bytes:
    """Flip one to sixteen bits."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        if changed:
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def flip_header(content: bytes, draw: random.Random) -> bytes:
    """Change bytes near the start or the end, where formats keep their lengths."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 2, 4))):
        near = draw.randrange(min(len(changed), 200)) if changed else 0
        if changed:
            changed[near if draw.random() < 0.6 else -1 - near] = draw.choice(
                (0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256))
            )
    return bytes(changed)


def edit_length(content: bytes, draw: random.Random) -> bytes:
    """Write a length that is wrong by far over 2, 4 or 8 bytes."""
    changed, size = bytearray(content), draw.choice((2, 4, 8))
    if len(changed) > size:
        place = (
            draw.randrange(min(len(changed) - size, 400))
            if draw.random() < 0.7
            else draw.randrange(len(changed) - size)
        )
        value = draw.choice((0, 1, 2**15 - 1, 2**27, 2**31 - 1, 2**31, 2**40, 2**63 - 1)) & (2 ** (8 * size) - 1)
        changed[place : place + size] = struct.pack("<Q", value)[:size]
    return bytes(changed)


def truncate(content: bytes, draw: random.Random) -> bytes:
    """Keep the first part."""
    return content[: draw.randrange(len(content) + 1)]


def zero_range(content: bytes, draw: random.Random) -> bytes:
    """Write zeros, or ones, over a range."""
    start = draw.randrange(len(content) + 1)
    length = min(draw.choice((4, 64, 512, 4096)), len(content) - start)
    return content[:start] + draw.choice((b"\0", b"\xff")) * length + content[start + length :]


def insert_bytes(content: bytes, draw: random.Random) -> bytes:
    """Put random bytes in between."""
    start = draw.randrange(len(content) + 1)
    return content[:start] + draw.randbytes(draw.choice((1, 2, 8, 100))) + content[start:]


def remove_bytes(content: bytes, draw: random.Random) -> bytes:
    """Take bytes out."""
    start = draw.randrange(len(content) + 1)
    return content[:start] + content[start + draw.choice((1, 2, 8, 100)) :]


def splice(content: bytes, draw: random.Random) -> bytes:
    """Join the first part of a file to another part of it."""
    return content[: draw.randrange(len(content) + 1)] + content[draw.randrange(len(content) + 1) :]


ANY: tuple[Damage, ...] = (
    *(flip_bits, flip_bits, flip_header, flip_header, edit_length, edit_length),
    *(truncate, zero_range, insert_bytes, remove_bytes, splice),
)


def edit_zip(content: bytes, draw: random.Random) -> bytes:
    """Drop, double, swap, rename, compress or damage an entry of a zip archive, which is written anew and valid."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    place, other = draw.randrange(len(entries)), draw.randrange(len(entries))
    name, inner = entries[place]
    what = draw.randrange(6)
    if what == 0:
        entries.pop(place)
    elif what == 1:
        entries.append((f"{name}.copy", inner))
    elif what == 2:
        entries[place], entries[other] = (name, entries[other][1]), (entries[other][0], inner)
    elif what == 3:
        entries[place] = (draw.choice(("x", "../x", name[:-1], name + ".npy")), inner)
    elif what == 4:
        entries[place] = (name, draw.choice(ANY)(inner, draw))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if what == 5 else zipfile.ZIP_STORED) as archive:
        for entry_name, entry in entries:
            archive.writestr(entry_name, entry)
    return stream.getvalue()


ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1e308, 10**30, "", "x", "\0", "../..", [], {}, [1], {"a": 1}, "9" * 5000, 0.5, "\ud800"),
    *([[[[[]]]]], [None] * 3, {"name": None}, -(2**63), 2**63),
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, below in inner for place in _places(below, (*path, key)))]


def edit_json(content: bytes, draw: random.Random) -> bytes:
    """Give an entry of a JSON text another type or a huge value, take it out, or nest it deeply."""
    value = json.loads(content)
    for _ in range(draw.choice((1, 1, 1, 3))):
        place = draw.choice(_places(value))
        if not place:
            continue
        owner = value
        try:
            for key in place[:-1]:
                owner = owner[key]
            if draw.random() < 0.25 and isinstance(owner, dict):
                owner.pop(place[-1], None)
            else:
                owner[place[-1]] = copy.deepcopy(draw.choice(ODD_VALUES))
        except (KeyError, IndexError, TypeError):  # an earlier edit took it away
            continue
    text = json.dumps(value)
    if draw.random() < 0.03:
        text = text.replace(":", ": " + "[" * 100_000, 1)
    if draw.random() < 0.03:
        text = draw.choice(("[" * 50_000, "1" * 6000, "null", "[]", "3", '"x"', text + text, "NaN"))
    return text.encode("utf-8", "surrogatepass")


def edit_safetensors(content: bytes, draw: random.Random) -> bytes:
    """Edit the header of a safetensors file, which stays in proportion to its length."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header.get("__metadata__")
    if metadata and draw.random() < 0.6:
        key = draw.choice(sorted(metadata))
        metadata[key] = edit_json(metadata[key].encode(), draw).decode("utf-8", "surrogatepass")
        text = json.dumps(header).encode()
    else:
        name = draw.choice([key for key in header if key != "__metadata__"])
        entry = header[name]
        what = draw.randrange(5)
        if what == 0:
            entry["dtype"] = draw.choice(("F64", "F16", "BF16", "F8_E4M3", "I64", "BOOL", "U16", "C64", "F4", "XX"))
        elif what == 1:
            entry["shape"] = draw.choice(([], [0], [-1], [2**40], [2**63], [1, *entry["shape"]], entry["shape"][::-1]))
        elif what == 2:
            entry["data_offsets"] = draw.choice(([0, 0], [0, 2**40], [5, 1], entry["data_offsets"][::-1]))
        elif what == 3:
            header[draw.choice(("x", name + "x", ""))] = header.pop(name)
        else:
            header.pop(name)
        text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def edit_lines(content: bytes, draw: random.Random) -> bytes:
    """Change a line of a list of images: its label, its path, its fields."""
    lines = content.split(b"\n")
    place = draw.randrange(len(lines))
    name, _, label = lines[place].rpartition(b" ")
    odd = (b"9" * 5000, b"1" + b"0" * 30, b"-1", b"1.5", b"", b"nan", b"\xd9\xa3", b"999", b"007")
    names = (b"a\0b.png", b"/dev/zero", b"/etc/passwd", b"..", b"", b"\xff", b"x" * 5000, b"img 1.png")
    if draw.random() < 0.6:
        lines[place] = name + b" " + draw.choice(odd)
    else:
        lines[place] = draw.choice(names) + b" " + label
    return b"\n".join(lines)
