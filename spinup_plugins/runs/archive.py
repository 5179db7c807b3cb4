"""A container of JSON and tensors that holds nothing to execute.

A zip of three members in fixed order, stored without compression::

    agent.json           what is known besides the tensors: canonical JSON (sorted keys, no spaces)
    weights.safetensors  the tensors by name
    sha256               SHA-256 over the two before, in hexadecimal

Any zip tool opens it, but it is read by its own few lines: names, order, times, attributes and gaps of the zip are all
determined, so whatever differs from the bytes that :func:`pack` writes is refused, and there is nowhere to hide anything. The
hash finds damage; who wrote a file it does not tell.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from math import inf, isfinite, isnan
from typing import Any, TypeAlias

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from spinup_plugins.errors import ModelFileError

__all__ = ["LIMIT", "Tensors", "pack", "unpack"]

LIMIT = 2**30
"""Largest size of a file, in bytes."""
JSON_LIMIT = 2**24
"""Largest size of its JSON, and of the header of its tensors, in bytes."""
DEPTH = 32
"""Deepest nesting of its JSON."""

MEMBERS = (b"agent.json", b"weights.safetensors", b"sha256")
DTYPES = {"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "F32", "F64"}

Tensors: TypeAlias = dict[str, np.ndarray[Any, Any]]


def pack(data: Mapping[str, Any], tensors: Tensors) -> bytes:
    """Return the bytes of an archive; equal content gives equal bytes.

    :param data: plain data; infinities are written as ``{"float": "inf"}``
    :param tensors: arrays by name
    :raises ValueError: a number is NaN or longer than 64 bits, nesting is too deep, or the archive would exceed its limits
    """
    members = [_dumped(data), safetensors.save({name: np.asarray(each, order="C") for name, each in tensors.items()})]
    size = sum(map(len, members)) + 1000  # for what is around them
    if size > LIMIT or len(members[0]) > JSON_LIMIT:
        raise ValueError(f"{size:,} bytes, of which {len(members[0]):,} JSON, are more than an archive may hold")
    _parsed(members[0])
    return _zipped([*members, _digest(members)])


def unpack(raw: bytes) -> tuple[dict[str, Any], Tensors, str]:
    """Read an archive.

    :param raw: its bytes
    :return: the data, the tensors by name, and the hash of both
    :raises ModelFileError: ``raw`` is anything but what :func:`pack` returns
    """
    if len(raw) > LIMIT:
        raise ModelFileError(f"it is larger than {LIMIT:,} bytes")
    text, weights, checksum = _members(raw)
    if checksum != _digest([text, weights]):
        raise ModelFileError("its content does not match its hash: it is damaged, or was changed")
    try:
        return _parsed(text), _tensors(weights), checksum.decode()
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"its content is not valid: {error}") from error


# --- zip --------------------------------------------------------------------------------------------------------------


def _zipped(contents: list[bytes]) -> bytes:
    """Write the members, stored, dated 1980-01-01, without any attributes."""
    body, directory, offset = [], [], 0
    for name, content in zip(MEMBERS, contents, strict=True):
        # needed version, flags, method, time, date, CRC, size twice, lengths of the name and of extra fields
        common = struct.pack("<5H3I2H", 20, 0, 0, 0, 33, zlib.crc32(content), len(content), len(content), len(name), 0)
        directory.append(b"PK\x01\x02" + struct.pack("<H", 20) + common + struct.pack("<3H2I", 0, 0, 0, 0, offset) + name)
        body += [b"PK\x03\x04" + common + name, content]
        offset += 30 + len(name) + len(content)
    count, size = len(MEMBERS), sum(map(len, directory))
    return b"".join([*body, *directory, b"PK\x05\x06", struct.pack("<4H2IH", 0, 0, count, count, size, offset, 0)])


def _members(raw: bytes) -> list[bytes]:
    """Cut the file where the members' headers say, and compare it with what that should look like."""
    contents, place = [], 0
    for name in MEMBERS:
        size = int.from_bytes(raw[place + 18 : place + 22], "little")
        place += 30 + len(name)
        contents.append(raw[place : place + size])
        place += size
    if _zipped(contents) != raw:
        if raw[:4] == b"PK\x03\x04" and raw[30:34] == b"data" and b"policy.pth" in raw:
            raise ModelFileError("it is a Stable-Baselines3 model; 'spinup export' makes an agent file of it")
        known = raw[:4] == b"PK\x03\x04" and raw[30 : 30 + len(MEMBERS[0])] == MEMBERS[0]
        raise ModelFileError("it is damaged, or was changed" if known else "it is not an agent file")
    return contents


def _digest(members: list[bytes]) -> bytes:
    digest = hashlib.sha256()
    for each in members:
        digest.update(struct.pack("<Q", len(each)))
        digest.update(each)
    return digest.hexdigest().encode()


# --- JSON -------------------------------------------------------------------------------------------------------------


def _dumped(data: Any) -> bytes:
    return json.dumps(_encoded(data), allow_nan=False, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def _parsed(text: bytes) -> dict[str, Any]:
    if len(text) > JSON_LIMIT:
        raise ValueError(f"more than {JSON_LIMIT:,} bytes of JSON")
    data = _decoded(json.loads(text.decode(), parse_int=_integer, parse_float=_float))
    if not isinstance(data, dict) or _dumped(data) != text:
        raise ValueError("the JSON has another form than this package writes")
    return data


def _encoded(data: Any, depth: int = DEPTH) -> Any:
    """Put what JSON has no number for into a mapping."""
    if depth == 0:
        raise ValueError(f"JSON nested more than {DEPTH} deep")
    if isinstance(data, dict):
        if data.keys() == {"float"} or not all(isinstance(key, str) for key in data):
            raise ValueError("a mapping has keys that cannot be written")
        return {key: _encoded(each, depth - 1) for key, each in data.items()}
    if isinstance(data, (list, tuple)):
        return [_encoded(each, depth - 1) for each in data]
    if isinstance(data, float) and not isfinite(data):
        if isnan(data):
            raise ValueError("a number is NaN")
        return {"float": str(data)}
    return data


def _decoded(data: Any) -> Any:
    if isinstance(data, dict):
        if data.keys() == {"float"}:
            return {"inf": inf, "-inf": -inf}.get(str(data["float"]))
        return {key: _decoded(each) for key, each in data.items()}
    return [_decoded(each) for each in data] if isinstance(data, list) else data


def _integer(text: str) -> int:
    if len(text) > 20:  # what 64 bits hold, with a sign
        raise ValueError(f"{text[:20]}… is too long an integer")
    return int(text)


def _float(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text} is no number that can be held")
    return number


# --- tensors ----------------------------------------------------------------------------------------------------------


def _tensors(raw: bytes) -> Tensors:
    """Read the tensors, once their names and types are known to be unique and ours."""
    length = int.from_bytes(raw[:8], "little")
    if length > min(JSON_LIMIT, len(raw) - 8):
        raise ValueError("the tensors' header is longer than it may be")
    text = raw[8 : 8 + length].decode()
    header = json.loads(text, object_pairs_hook=_unique, parse_int=_integer)
    if not isinstance(header, dict) or json.dumps(header, ensure_ascii=False, separators=(",", ":")) != text.rstrip(" "):
        raise ValueError("the tensors' header has another form than safetensors writes")
    for name, entry in header.items():
        known = isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}
        if not known or not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
            raise ValueError(f"{name[:100]!r} is no tensor")
    try:
        return safetensors.load(raw)  # which checks shapes against places, and places against the bytes that there are
    except (SafetensorError, TypeError, KeyError, OverflowError) as error:
        raise ValueError(f"tensors: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice in the tensors' header")
    return found
