"""What a byte-level BPE vocabulary is: tokens, merges, special tokens, and how text is cut before it is merged."""

from __future__ import annotations

import dataclasses
import functools
import unicodedata
from collections.abc import Mapping, Sequence

import regex

from zoo.errors import InputError

BYTES = 256
NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD")
INVALID = regex.compile("[\udc80-\udcff]+")  # what surrogateescape makes of bytes that are not UTF-8


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """A byte-level vocabulary. Every byte is a token, so that every byte string has ids.

    Attributes:
        ids: bytes of each ordinary token -> its id.
        merges: pairs of tokens in the order in which they merge; None: any two neighbours whose concatenation is a
            token merge, lowest id first, as in tiktoken's rank files.
        patterns: regular expressions that cut text into pieces, one after the other, each piece of the one before;
            text between matches is a piece too. No merge crosses pieces.
        specials: name -> id; they are parsed only where a caller allows them.
        whole_first: a piece that is a token is not merged (`ignore_merges` of tokenizer.json; always so with ranks).
        normalizer: "NFC", "NFD", "NFKC" or "NFKD" before cutting, or None; with one, text comes back normalized.

    Raises:
        InputError: when built, if a byte is missing, an id is negative or taken twice, a merge has a part or a result
            that is no token, or a pattern is no regular expression.
    """

    ids: Mapping[bytes, int]
    merges: Sequence[tuple[bytes, bytes]] | None
    patterns: tuple[str, ...]
    specials: Mapping[str, int] = dataclasses.field(default_factory=dict)
    whole_first: bool = False
    normalizer: str | None = None

    def __post_init__(self) -> None:
        missing = [byte for byte in range(BYTES) if bytes([byte]) not in self.ids]
        if missing:
            raise InputError(
                f"the vocabulary lacks {len(missing)} of the 256 byte tokens (first {missing[0]:#04x}); a byte-level "
                "vocabulary has all of them: train with zoo.text.train, or add them"
            )
        seen: dict[int, bytes | str] = {}
        for token, number in [*self.ids.items(), *self.specials.items()]:
            if number < 0:
                raise InputError(f"token {token!r} has id {number}; ids start at 0")
            if number in seen:
                raise InputError(f"id {number} belongs to {seen[number]!r} and to {token!r}; each token has its own id")
            seen[number] = token
        for rank, (left, right) in enumerate(self.merges or ()):
            absent = [part for part in (left, right, left + right) if part not in self.ids]
            if absent:
                raise InputError(
                    f"merge {rank} ({left!r}, {right!r}) needs the token {absent[0]!r}, which is not there"
                )
        if self.normalizer not in (None, *NORMALIZERS):
            raise InputError(f"unknown normalizer {self.normalizer!r}; accepted: {', '.join(NORMALIZERS)} or None")
        self.compiled  # noqa: B018 (a bad pattern is found now)

    @functools.cached_property
    def compiled(self) -> tuple[regex.Pattern, ...]:
        """The patterns, compiled."""
        found = []
        for pattern in self.patterns:
            try:
                found.append(regex.compile(pattern))
            except regex.error as error:
                raise InputError(f"the pattern {pattern!r} is no regular expression: {error}") from error
        return tuple(found)

    @functools.cached_property
    def tokens(self) -> list[bytes | None]:
        """The bytes of each id, of a special token those of its name; None where no token has the id."""
        everything = [(number, token) for token, number in self.ids.items()]
        everything += [(number, name.encode()) for name, number in self.specials.items()]
        found: list[bytes | None] = [None] * (1 + max(number for number, _ in everything))
        for number, token in everything:
            found[number] = token
        return found

    @functools.cached_property
    def byte_ids(self) -> list[int]:
        """The id of each byte."""
        return [self.ids[bytes([byte])] for byte in range(BYTES)]

    @property
    def size(self) -> int:
        """One more than the highest id: the rows of an embedding."""
        return len(self.tokens)

    def cut(self, text: str | bytes) -> Sequence[str | bytes]:
        """The pieces of a text, in order; together they are the text (the normalized text, with a normalizer).

        Args:
            text: a str that UTF-8 has, or any bytes. Of bytes that are not UTF-8, each longest run is a piece.

        Returns:
            Pieces, those runs as bytes and all others as str.
        """
        if isinstance(text, bytes):
            try:
                text = text.decode()
            except UnicodeDecodeError:
                return self._cut_invalid(text)
        if self.normalizer:
            text = unicodedata.normalize(self.normalizer, text)  # pyright: ignore[reportArgumentType]
        pieces = [text] if text else []
        for pattern in self.compiled:
            pieces = [part for piece in pieces for part in isolated(pattern, piece)]
        return pieces

    def _cut_invalid(self, text: bytes) -> list[str | bytes]:
        pieces: list[str | bytes] = []
        escaped, end = text.decode(errors="surrogateescape"), 0
        for match in INVALID.finditer(escaped):
            pieces += self.cut(escaped[end : match.start()])
            pieces.append(match.group().encode(errors="surrogateescape"))
            end = match.end()
        return [*pieces, *self.cut(escaped[end:])]


def as_bytes(piece: str | bytes) -> bytes:
    """A piece as the merges see it."""
    return piece.encode() if isinstance(piece, str) else piece


def isolated(pattern: regex.Pattern, text: str) -> list[str]:
    """Matches of a pattern and what is between them, in order; empty matches count for nothing."""
    if not pattern.groups:
        pieces = pattern.findall(text)
        if sum(map(len, pieces)) == len(text) and "" not in pieces:
            return pieces
    pieces, end = [], 0
    for match in pattern.finditer(text):
        if match.end() > match.start():
            pieces += [text[end : match.start()], match.group()]
            end = match.end()
    return [piece for piece in [*pieces, text[end:]] if piece]
