"""What a user holds: text or bytes in, numpy int32 ids out, and back.

text -> special tokens, where allowed -> pieces (the vocabulary's patterns) -> merges -> ids
"""

from __future__ import annotations

import codecs
import functools
from collections.abc import Collection, Sequence
from itertools import chain
from typing import Literal, Protocol, overload

import numpy as np
import regex

from zoo.errors import InputError, did_you_mean
from zoo.text.bpe import Merger
from zoo.text.engine import Engine, engine
from zoo.text.vocabulary import Vocabulary, as_bytes

REMEMBERED = 1 << 18  # pieces
LONGEST = 64  # characters or bytes of a piece that is remembered
Errors = Literal["strict", "replace"]


class Segment(Protocol):
    """From a piece to ids; `remembered` where the same piece always has the same ids."""

    remembered: bool

    def __call__(self, piece: bytes) -> Sequence[int]: ...


class Pieces(dict[str | bytes, Sequence[int]]):
    """Piece -> ids, filled as pieces are met."""

    def __init__(self, segment: Segment):
        super().__init__()
        self._segment, self._longest = segment, LONGEST if segment.remembered else 0

    def __missing__(self, piece: str | bytes) -> Sequence[int]:
        ids = self._segment(as_bytes(piece))
        if len(piece) <= self._longest:
            if len(self) >= REMEMBERED:
                self.clear()
            self[piece] = ids
        return ids


class BPETokenizer:
    """A byte-level BPE tokenizer.

    Args:
        vocabulary: tokens, merges, patterns and special tokens.
        segment: what gives the ids of a piece, of `zoo.text.segment`; None: BPE.
        plain: do without tiktoken, which never changes an id.

    Attributes:
        vocabulary: as given.
    """

    def __init__(self, vocabulary: Vocabulary, segment: Segment | None = None, *, plain: bool = False):
        self.vocabulary = vocabulary
        self._segment = Merger(vocabulary) if segment is None else segment
        self._pieces = Pieces(self._segment)
        self._plain = plain or segment is not None
        self._known = np.array([token is not None for token in vocabulary.tokens])

    @functools.cached_property
    def _fast(self) -> Engine | None:
        """Built when first used: who only decodes does not wait for it."""
        return None if self._plain else engine(self.vocabulary)

    @property
    def engine(self) -> str:
        """What most texts are encoded with: "tiktoken" or "python"."""
        return "tiktoken" if self._fast else "python"

    @overload
    def encode(self, text: str | bytes, *, allowed_special: Collection[str] = ..., errors: str = ...) -> np.ndarray: ...
    @overload
    def encode(self, text: list, *, allowed_special: Collection[str] = ..., errors: str = ...) -> list[np.ndarray]: ...
    def encode(
        self, text: str | bytes | list, *, allowed_special: Collection[str] = (), errors: str = "strict"
    ) -> np.ndarray | list[np.ndarray]:
        """Ids of a text.

        Bytes that are not UTF-8 come back exactly, too: each longest run of such bytes is a piece of its own.

        Args:
            text: a str, bytes, or a list of them.
            allowed_special: names of special tokens that become their ids where the text has them; "all" for all. Any
                other is plain text, so that what a user typed is never a special token.
            errors: of a str with lone surrogates, which UTF-8 does not have: "strict" raises, "replace" puts U+FFFD,
                "surrogatepass" encodes them as three bytes each.

        Returns:
            int32 [n], or a list of such arrays for a list.

        Raises:
            InputError: not a text, lone surrogates, or an unknown special token.
        """
        if isinstance(text, list):
            return [self.encode(one, allowed_special=allowed_special, errors=errors) for one in text]
        if isinstance(text, bytes | bytearray | memoryview):
            parts = self._parts(bytes(text), allowed_special)
        elif isinstance(text, str):
            parts = self._parts(_utf8(text, errors), allowed_special)
        else:
            raise InputError(f"text is {type(text).__name__}; accepted: str, bytes, or a list of them")
        found = [np.array([part], np.int32) if isinstance(part, int) else self._encode(part) for part in parts]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _encode(self, text: str | bytes) -> np.ndarray:
        """Ids of a str that UTF-8 has, or of any bytes, without special tokens."""
        if self._fast and isinstance(text, str) and (ids := self._fast(text)) is not None:
            return ids
        return np.fromiter(chain.from_iterable(map(self._pieces.__getitem__, self.vocabulary.cut(text))), np.int32)

    def _parts(self, text: str | bytes, allowed: Collection[str]) -> list[str | bytes | int]:
        """Ids of the special tokens that are allowed, and what is between them."""
        specials = self.vocabulary.specials
        names = list(specials) if allowed == "all" else list(allowed)
        for name in names:
            if name not in specials:
                hint = did_you_mean(name, list(specials))
                raise InputError(f"{name!r} is no special token of this vocabulary{hint}; it has {list(specials)[:5]}")
        if not names:
            return [text]
        names = sorted(names, key=len, reverse=True)
        if isinstance(text, bytes):
            pattern = b"|".join(regex.escape(name.encode(), special_only=True) for name in names)
            cut = regex.split(b"(" + pattern + b")", text)
            return [specials[part.decode()] if i % 2 else part for i, part in enumerate(cut)]
        cut = regex.split("(" + "|".join(regex.escape(name, special_only=True) for name in names) + ")", text)
        return [specials[part] if i % 2 else part for i, part in enumerate(cut)]

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The bytes of ids [n]; special tokens give the bytes of their names.

        Raises:
            InputError: an id that is no integer or that no token has; the first one is named.
        """
        return b"".join(map(self.vocabulary.tokens.__getitem__, self._checked(ids)))  # pyright: ignore[reportArgumentType]

    def decode(self, ids: Sequence[int] | np.ndarray, *, errors: Errors = "strict") -> str:
        """The text of ids [n].

        Args:
            ids: as from `encode`.
            errors: where their bytes are not UTF-8: "strict" raises, "replace" puts U+FFFD.

        Raises:
            InputError: as `decode_bytes`, or bytes that are not UTF-8.
        """
        data = self.decode_bytes(ids)
        try:
            return data.decode(errors=errors)
        except UnicodeDecodeError as error:
            raise InputError(
                f"the bytes of these ids are not UTF-8 (byte {error.start}: {data[error.start]:#04x}); "
                "take decode_bytes, or errors='replace'"
            ) from error

    def stream(self) -> Stream:
        """A decoder of one id after the other."""
        return Stream(self)

    def _checked(self, ids: Sequence[int] | np.ndarray) -> list[int]:
        array = np.asarray(ids)
        if array.size == 0:
            return []
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise InputError(f"ids are {array.dtype} {list(array.shape)}; accepted: integers [n]")
        size = len(self._known)
        if array.min() < 0 or array.max() >= size or not self._known[array].all():
            known = set(np.flatnonzero(self._known).tolist())
            where, number = next((i, number) for i, number in enumerate(array.tolist()) if number not in known)
            raise InputError(f"id {number} at {where} is no token; accepted: ids of this vocabulary, below {size}")
        return array.tolist()


class Stream:
    """Text of ids that come one by one, without U+FFFD for characters whose bytes are split between tokens.

    Args:
        tokenizer: whose ids they are.
    """

    def __init__(self, tokenizer: BPETokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, *ids: int) -> str:
        """The text that is complete with these ids."""
        return self._decoder.decode(self._tokenizer.decode_bytes(ids))

    def finish(self) -> str:
        """The rest: empty, or U+FFFD for a character that never became whole."""
        return self._decoder.decode(b"", final=True)


def _utf8(text: str, errors: str) -> str | bytes:
    """The text if UTF-8 has it; otherwise what `errors` makes of it."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError as error:
        if errors == "surrogatepass":
            return text.encode(errors="surrogatepass")
        if errors == "replace":
            return regex.sub("[\ud800-\udfff]", "\ufffd", text)
        raise InputError(
            f"the text has a lone surrogate ({text[error.start]!r} at {error.start}), which UTF-8 does not have; "
            "pass bytes, errors='replace' or errors='surrogatepass'"
        ) from error
