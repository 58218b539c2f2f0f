"""Files of published byte-level BPE vocabularies: rank files, tokenizer.json, merges and tekken, in and out.

    file -> its SHA-256, where one is given -> tokens, merges, patterns, special tokens -> Vocabulary

A file is either read as it is meant or refused, in one line that names the file and the line, entry or field. Special
tokens are parsed only where a caller of `encode` allows them, whatever the file says.
"""

from __future__ import annotations

import base64
import dataclasses
import gzip
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import regex

from zoo.errors import InputError, did_you_mean
from zoo.text import tokenizer_json
from zoo.text.bpe import Merger
from zoo.text.files import (
    BYTE,
    EMPTY,
    LARGEST,
    SHOWN,
    base64_bytes,
    build,
    check_specials,
    field,
    load,
    merge_list,
    ordinary_ids,
    parsed,
    save,
)
from zoo.text.patterns import PATTERNS
from zoo.text.tokenizer_json import read_tokenizer_json, write_tokenizer_json
from zoo.text.vocabulary import Vocabulary

__all__ = [
    "read",
    "read_merges",
    "read_ranks",
    "read_tekken",
    "read_tokenizer_json",
    "write_ranks",
    "write_tokenizer_json",
]

RANK_LINE = regex.compile(r"=\s+\d+\s*|(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?\s+\d+\s*")
TEKKEN = (  # names of special tokens up to version 7, whose files may have none (mistral-common, tekken.py)
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CALLS] "
    "[IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]"
).split()


def read(
    path: str | os.PathLike,
    pattern: str | Sequence[str] | None = None,
    specials: Mapping[str, int] | None = None,
    *,
    sha256: str | None = None,
) -> Vocabulary:
    """The vocabulary of a file, whose format is found from what is in it.

    Args:
        path: a rank file, tokenizer.json, merges or tekken file, also with gzip.
        pattern, specials: as in `read_ranks`; only for ranks and merges, JSON has its own.
        sha256: of the file, in hexadecimal; compared before anything is parsed.

    Raises:
        InputError: another hash, a format that is none of these, or as the reader of that format.
    """
    text, name = load(path, sha256), str(path)
    if text.lstrip()[:1] == "{":
        if pattern is not None or specials:
            raise InputError(f"{name} has its own pattern and special tokens; leave out pattern and specials")
        document = parsed(text, name)
        if "model" not in document and "config" not in document:
            raise InputError(f"{name} is neither tokenizer.json (has a model) nor tekken (has a config)")
        return tokenizer_json.from_document(document, name) if "model" in document else _tekken(document, name)
    first = [line for line in text.split("\n", 100)[:100] if line.strip()]
    if 2 * sum(RANK_LINE.fullmatch(line) is not None for line in first) > len(first):
        return _ranks(text, name, pattern, specials or {})
    if not first or not (first[0].startswith("#version") or len(first[0].split()) == 2):
        raise InputError(f"{name} is none of: rank file, tokenizer.json, merges, tekken; read takes these")
    return _merges(text, name, pattern, specials or {}, None)


def read_ranks(
    path: str | os.PathLike, pattern: str | Sequence[str], specials: Mapping[str, int] | None = None
) -> Vocabulary:
    """The vocabulary of tiktoken's rank files: a token in base64, a blank, its rank, line by line; also with gzip.

    Args:
        path: of the file.
        pattern: it was trained with, which the file does not tell: a name in `zoo.text.patterns.PATTERNS`, a regular
            expression, or several of them, which cut one after the other.
        specials: name -> id of its special tokens, which the file does not have either.

    Returns:
        A vocabulary without a list of merges: ids are ranks.

    Raises:
        InputError: an unknown pattern, no such file, a line that is not as above, a token or rank that comes twice, a
            rank below the highest that neither a token nor a special token has, or a byte that is no token.
    """
    return _ranks(load(path), str(path), pattern, specials or {})


def read_merges(
    path: str | os.PathLike,
    pattern: str | Sequence[str],
    specials: Mapping[str, int] | None = None,
    vocabulary: str | os.PathLike | None = None,
) -> Vocabulary:
    """The vocabulary of GPT-2's merges.txt or vocab.bpe: two parts a line in the characters shown for bytes.

    Args:
        path: of the merges; a first line "#version" is passed.
        pattern, specials: as in `read_ranks`.
        vocabulary: encoder.json with the ids; None: GPT-2's order, bytes as their characters sort and then the merges.
            Its special tokens must be named in `specials`; else they are ordinary ones, which no merge gives.

    Returns:
        A vocabulary with this list of merges.

    Raises:
        InputError: as `read_ranks`, or a merge that comes twice or needs what is no token.
    """
    encoder = None if vocabulary is None else (parsed(load(vocabulary), str(vocabulary)), str(vocabulary))
    return _merges(load(path), str(path), pattern, specials or {}, encoder)


def read_tekken(path: str | os.PathLike) -> Vocabulary:
    """The vocabulary of a tekken file of Mistral: special tokens come first, then ranks up to `default_vocab_size`.

    Special tokens without a name in the file are called as mistral-common calls them. Images and audio are ignored.

    Raises:
        InputError: no such file, a key that is missing, or sizes, ranks or tokens that do not fit together.
    """
    return _tekken(parsed(load(path), str(path)), str(path))


def write_ranks(vocabulary: Vocabulary, path: str | os.PathLike) -> None:
    """Writes a rank file, with gzip where the path ends with .gz. Neither patterns nor special tokens are in it.

    Raises:
        InputError: no rank file gives the ids of this vocabulary: it has a normalizer, an id that nothing has, or
            merges with another result or order; or the path cannot be written.
    """
    if vocabulary.normalizer:
        raise InputError(f"a rank file has no normalizer ({vocabulary.normalizer}); write_tokenizer_json has")
    missing = _missing(vocabulary.ids.values(), vocabulary.specials)
    if missing is not None:
        raise InputError(f"id {missing} has no token, and ranks have no gaps; write_tokenizer_json has ids with gaps")
    if vocabulary.merges is not None:
        _check_same_as_ranks(vocabulary)
    ranks = sorted(vocabulary.ids.items(), key=lambda item: item[1])
    data = "".join(f"{base64.b64encode(token).decode() or EMPTY} {rank}\n" for token, rank in ranks).encode()
    save(path, gzip.compress(data, mtime=0) if str(path).endswith(".gz") else data)


def _ranks(text: str, name: str, pattern: Any, specials: Mapping[str, int]) -> Vocabulary:
    patterns = _patterns(pattern, name)
    check_specials(specials, name)
    ids: dict[bytes, int] = {}
    lines: dict[int, int] = {}
    for number, line in _lines(text):
        where = f"{name}, line {number}"
        fields = line.split()
        if len(fields) != 2:
            raise InputError(f"{where}: {line[:40]!r}; accepted: a token in base64, a blank, its rank")
        token = base64_bytes(fields[0], where)
        if not (fields[1].isascii() and fields[1].isdigit() and len(fields[1]) < 9):
            raise InputError(f"{where}: rank {fields[1][:40]!r}; accepted: an integer from 0")
        rank = int(fields[1])
        if token in ids:
            raise InputError(f"{where}: {token!r} again, which line {lines[ids[token]]} has; each token comes once")
        if rank in lines:
            raise InputError(f"{where}: rank {rank} again, which line {lines[rank]} has; each rank comes once")
        ids[token], lines[rank] = rank, number
    missing = _missing(lines, specials)
    if missing is not None:
        after = min(rank for rank in lines if rank > missing)
        raise InputError(
            f"{name}, line {lines[after]}: rank {after}, but no token has rank {missing}; if it is that of a special "
            "token, pass it in specials"
        )
    return build(name, ids, None, patterns, specials)


def _merges(
    text: str, name: str, pattern: Any, specials: Mapping[str, int], encoder: tuple[dict, str] | None
) -> Vocabulary:
    patterns = _patterns(pattern, name)
    check_specials(specials, name)
    lines = [(f"{name}, line {i}", line.split(" ")) for i, line in _lines(text) if i > 1 or line[:8] != "#version"]
    if encoder is None:
        ids = {bytes([BYTE[char]]): i for i, char in enumerate(sorted(SHOWN))}
    else:
        ids = ordinary_ids(encoder[0], specials, {"".join(pair) for _, pair in lines}, encoder[1])
    merges = merge_list(lines, ids, grow=encoder is None)
    return build(name, ids, merges, patterns, specials)


def _tekken(document: dict, name: str) -> Vocabulary:
    config = field(document, "config", dict, name)
    pattern = field(config, "pattern", str, f"{name}: config")
    size = field(config, "default_vocab_size", int, f"{name}: config")
    reserved = field(config, "default_num_special_tokens", int, f"{name}: config")
    entries = field(document, "vocab", list, name)
    if not 0 <= reserved <= size <= min(LARGEST, reserved + len(entries)):
        raise InputError(
            f"{name}: default_vocab_size is {size}, with {reserved} special tokens and {len(entries)} others"
        )
    specials = _tekken_specials(document, reserved, name)
    ids: dict[bytes, int] = {}
    for rank, entry in enumerate(entries[: size - reserved]):
        where = f"{name}, vocab entry {rank}"
        if (found := field(entry, "rank", int, where)) != rank:
            raise InputError(f"{where}: rank {found}; ranks are 0, 1, 2, ... without gap or repetition")
        token = base64_bytes(field(entry, "token_bytes", str, where), where)
        if token in ids:
            raise InputError(
                f"{where}: {token!r} again, which entry {ids[token] - reserved} has; each token comes once"
            )
        ids[token] = reserved + rank
    return build(name, ids, None, (pattern,), specials)


def _tekken_specials(document: dict, reserved: int, name: str) -> dict[str, int]:
    listed = document.get("special_tokens")
    if listed is None:
        version = regex.fullmatch(r"v(\d{1,4})", str(document["config"].get("version")))
        if not version or int(version[1]) > 7:
            raise InputError(f"{name}: special_tokens is missing; only files up to version v7 may lack it")
        listed = [{"token_str": special, "rank": rank} for rank, special in enumerate(TEKKEN)]
    elif not isinstance(listed, list):
        raise InputError(f"{name}: special_tokens is {type(listed).__name__}; accepted: list")
    specials: dict[str, int] = {}
    for i, entry in enumerate(listed):
        where = f"{name}, special token {i}"
        special = field(entry, "token_str", str, where)
        if special in specials:
            raise InputError(f"{where}: {special!r} again; each special token comes once")
        specials[special] = field(entry, "rank", int, where)
    if sorted(specials.values()) != list(range(len(specials))) or len(specials) > reserved:
        raise InputError(f"{name}: ranks of {len(specials)} special tokens are not 0, 1, 2, ... below {reserved}")
    for number in range(len(specials), reserved):
        if specials.setdefault(f"<SPECIAL_{number}>", number) != number:
            raise InputError(f"{name}: the name of special token {number} belongs to another; rename it")
    return specials


def _check_same_as_ranks(vocabulary: Vocabulary) -> None:
    """Raises unless ranks give the ids that these merges give.

    Between two ranks of the same order only a pair that is no merge, but whose concatenation is a token, can make a
    difference. Where such a pair comes up in a text it does so when that token's own bytes are merged, too, which stops
    there: at two parts. With more parts left, only taking a token that is a whole piece makes a difference.
    """
    last = -1
    for left, right in vocabulary.merges or ():
        number = vocabulary.ids[left + right]
        if number < last:
            raise InputError(
                f"id {number} ({left + right!r}) comes after {last} in the merges; ranks have them in order"
            )
        last = number
    merge = Merger(dataclasses.replace(vocabulary, whole_first=False))
    for token, number in vocabulary.ids.items():
        parts = len(merge(token))
        if parts == 2 or (parts > 2 and not vocabulary.whole_first):
            raise InputError(
                f"merges do not give the token {token!r} (id {number}), ranks would; write_tokenizer_json has both"
            )


def _missing(ranks: Iterable[int], specials: Mapping[str, int]) -> int | None:
    """The least number below the highest rank that neither a token nor a special token has."""
    ranks = set(ranks)
    taken = ranks | set(specials.values())
    return next((number for number in range(max(ranks, default=0)) if number not in taken), None)


def _patterns(pattern: Any, name: str) -> tuple[str, ...]:
    """Regular expressions of names and of regular expressions."""
    known = f"one of {', '.join(PATTERNS)}, or a regular expression"
    given = [pattern] if isinstance(pattern, str) else list(pattern) if isinstance(pattern, list | tuple) else []
    if not given or not all(isinstance(one, str) for one in given):
        raise InputError(f"{name} has no pattern that cuts text, and none is guessed; pass {known}")
    for one in given:
        if one not in PATTERNS and regex.escape(one, special_only=True) == one:
            raise InputError(f"unknown pattern {one!r}{did_you_mean(one, list(PATTERNS))}; accepted: {known}")
    return tuple(PATTERNS.get(one, one) for one in given)


def _lines(text: str) -> Iterable[tuple[int, str]]:
    """Lines that are not blank, with their numbers. Only line feeds end a line."""
    return ((i, line.rstrip("\r")) for i, line in enumerate(text.split("\n"), 1) if line.strip())
