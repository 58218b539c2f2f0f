"""What readers and writers of vocabulary files share: bytes from and to a disk, checked JSON, tokens as shown."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zoo.errors import InputError
from zoo.text.trainer import Merge, shown_bytes
from zoo.text.vocabulary import Vocabulary

SHOWN = shown_bytes()
BYTE = {char: byte for byte, char in enumerate(SHOWN)}
EMPTY = "="  # what whisper's multilingual ranks have for a token without bytes
LARGEST = 1 << 24  # ids: a table of them must fit in memory


def load(path: str | os.PathLike, sha256: str | None = None) -> str:
    """The text of a file, unpacked where it has gzip, and checked against its hash where one is given."""
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if sha256 is not None and (found := hashlib.sha256(data).hexdigest()) != sha256.lower():
        raise InputError(f"{path} has the SHA-256 {found}, expected: {sha256}; it is another file or damaged")
    try:
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        return data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is damaged gzip: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text (byte {error.start}); accepted: ranks, merges or JSON") from error


def save(path: str | os.PathLike, data: str | bytes) -> None:
    """Writes a file whole or not at all."""
    target = Path(path)
    temporary = target.parent / f".{target.name}.{os.getpid()}"
    try:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        os.replace(temporary, target)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be written: {error}") from error
    finally:
        with contextlib.suppress(OSError, ValueError):
            temporary.unlink(missing_ok=True)


def parsed(text: str, name: str) -> dict:
    """The object of a JSON text; a key that comes twice is an error."""

    def once(pairs: list[tuple[str, Any]]) -> dict:
        found = dict(pairs)
        if len(found) < len(pairs):
            key = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise InputError(f"{name}: {key[:40]!r} comes twice in an object")
        return found

    try:
        document = json.loads(text, object_pairs_hook=once)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise InputError(f"{name} is a JSON {type(document).__name__}; accepted: an object")
    return document


def field(value: Any, key: str, kind: type, where: str) -> Any:
    """value[key], which must be there and of this kind."""
    if not isinstance(value, dict) or key not in value:
        raise InputError(f"{where}: {key} is missing")
    if not isinstance(value[key], kind) or (kind is int and isinstance(value[key], bool)):
        raise InputError(f"{where}: {key} is {type(value[key]).__name__}; accepted: {kind.__name__}")
    return value[key]


def is_id(number: Any) -> bool:
    """Whether this can be an id."""
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < LARGEST


def shown(token: bytes) -> str:
    """A token in the characters that files show for bytes."""
    return "".join(map(SHOWN.__getitem__, token))


def unshown(text: str, where: str) -> bytes:
    """The token of such characters."""
    try:
        return bytes(map(BYTE.__getitem__, text))
    except KeyError as error:
        raise InputError(f"{where}: {error.args[0]!r} stands for no byte; accepted: byte-level tokens") from error


def base64_bytes(text: str, where: str) -> bytes:
    """The bytes of a token in base64."""
    if text == EMPTY:
        return b""
    try:
        token = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InputError(f"{where}: {text[:40]!r} is no base64: {error}") from error
    if not token:
        raise InputError(f"{where}: {text[:40]!r} is an empty token")
    return token


def check_specials(specials: Any, name: str) -> None:
    """Raises unless these are names with ids."""
    if not isinstance(specials, Mapping):
        raise InputError(f"{name}: specials is {type(specials).__name__}; accepted: a mapping of names to ids")
    for special, number in specials.items():
        if not is_id(number):
            raise InputError(f"{name}: special token {special!r} has id {number!r}; accepted: from 0, below {LARGEST}")
        if not isinstance(special, str) or not special or any("\ud800" <= char <= "\udfff" for char in special):
            raise InputError(f"{name}: a special token has the name {special!r}; accepted: text, not empty")


def build(
    name: str,
    ids: dict[bytes, int],
    merges: list[Merge] | None,
    patterns: tuple[str, ...],
    specials: Mapping[str, int],
    **options: Any,
) -> Vocabulary:
    """The vocabulary; its errors get the name of the file."""
    check_specials(specials, name)
    try:
        return Vocabulary(ids, merges, patterns, dict(specials), **options)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except RecursionError as error:
        raise InputError(f"{name}: a pattern is nested too deeply") from error


def ordinary_ids(vocab: Mapping[str, Any], specials: Mapping[str, int], made: set[str], name: str) -> dict[bytes, int]:
    """Ids of ordinary tokens; `made` is what merges give. Special tokens are often in a vocabulary, too."""
    ids: dict[bytes, int] = {}
    for text, number in vocab.items():
        where = f"{name}: token {text[:40]!r}"
        if not is_id(number):
            raise InputError(f"{where} has id {number!r}; accepted: an integer from 0, below {LARGEST}")
        if text not in specials:
            ids[unshown(text, where)] = number
        elif specials[text] != number:
            raise InputError(f"{where} has id {number}, as a special token {specials[text]}; one of them is wrong")
        elif text in made or text in BYTE:
            raise InputError(f"{where} is a special token, and plain text has it too; take it from one of the lists")
    return ids


def merge_list(pairs: Iterable[tuple[str, Any]], ids: dict[bytes, int], grow: bool) -> list[Merge]:
    """Merges of pairs (where, [left, right]); with `grow` each adds its result to `ids`."""
    found: dict[Merge, None] = {}
    for where, pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            raise InputError(f"{where}: {str(pair)[:80]!r}; accepted: two parts with a blank between them")
        left, right = unshown(pair[0], where), unshown(pair[1], where)
        for part in (left, right) if grow else (left, right, left + right):
            if part not in ids:
                raise InputError(f"{where}: needs the token {part[:40]!r}, which is not there")
        if (left, right) in found:
            raise InputError(f"{where}: {left!r} {right!r} comes again; each merge comes once")
        if grow and left + right in ids:
            raise InputError(f"{where}: gives {left + right!r}, as a line before; pass encoder.json as vocabulary")
        if grow:
            ids[left + right] = len(ids)
        found[left, right] = None
    return list(found)
