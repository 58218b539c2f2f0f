"""tokenizer.json of Hugging Face's tokenizers, of byte-level BPE models, in and out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from itertools import chain
from typing import Any

import regex

from zoo.errors import InputError
from zoo.text.files import build, field, load, merge_list, ordinary_ids, parsed, save, shown
from zoo.text.patterns import GPT2
from zoo.text.trainer import Merge
from zoo.text.vocabulary import NORMALIZERS, Vocabulary

MODEL = {  # what a model of tokenizer.json may say, besides vocab, merges and ignore_merges
    "type": ("BPE", None),
    "dropout": (None, 0),
    "unk_token": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "fuse_unk": (False, None),
    "byte_fallback": (False, None),
}
CLASS = regex.compile(r"\[(?:\\.|[^\]\\])+\]")
# Oniguruma, which runs the patterns of tokenizer.json, means another thing by these; by anchors the ends of a line
FOREIGN = regex.compile(r"&&|\\[hH]|\(\?[a-z]*m|\{[\d,]+\}\+")
ANCHOR = regex.compile(r"(?<!\\)[\^$]")


def read_tokenizer_json(path: str | os.PathLike) -> Vocabulary:
    """The vocabulary of a tokenizer.json of Hugging Face whose model is a byte-level BPE.

    Read are the model, the pre-tokenizer (ByteLevel, Split that isolates, Digits, and sequences of them with ByteLevel
    at the end), the normalizer (none, or one of NFC, NFD, NFKC, NFKD), and all added tokens, as special tokens. The
    decoder and what works on whole sequences of ids are ignored: post_processor, truncation, padding.

    Raises:
        InputError: no such file, another model, or a field with a value that would give other ids; it is named.
    """
    return from_document(parsed(load(path), str(path)), str(path))


def write_tokenizer_json(vocabulary: Vocabulary, path: str | os.PathLike) -> None:
    """Writes a tokenizer.json, which Hugging Face's tokenizers load with equal ids.

    Ranks become all splits of each token into two tokens, by the rank of the result. Special tokens are in the model's
    vocabulary too: only so do they keep ids that are below those of other tokens.

    Raises:
        InputError: a special token with the name that the file has for an ordinary one, a pattern that means another
            thing there, or a path that cannot be written.
    """
    vocab = {shown(token): number for token, number in vocabulary.ids.items()}
    for special, number in vocabulary.specials.items():
        if special in vocab:
            raise InputError(f"the special token {special!r} has the name of an ordinary token; rename it")
        vocab[special] = number
    splits = [
        {
            "type": "Split",
            "pattern": {"Regex": _portable(pattern, "tokenizer.json")},
            "behavior": "Isolated",
            "invert": False,
        }
        for pattern in vocabulary.patterns
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    merges = _all_splits(vocabulary.ids) if vocabulary.merges is None else vocabulary.merges
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": n, "content": name, **flags} for name, n in vocabulary.specials.items()],
        "normalizer": {"type": vocabulary.normalizer} if vocabulary.normalizer else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, level]},
        "post_processor": None,
        "decoder": level,
        "model": {
            **{key: accepted[0] for key, accepted in MODEL.items()},
            "ignore_merges": vocabulary.whole_first or vocabulary.merges is None,
            "vocab": dict(sorted(vocab.items(), key=lambda item: item[1])),
            "merges": [f"{shown(left)} {shown(right)}" for left, right in merges],
        },
    }
    document["added_tokens"].sort(key=lambda token: token["id"])
    save(path, json.dumps(document, ensure_ascii=False, indent=1))


def from_document(document: dict, name: str) -> Vocabulary:
    """The vocabulary of a parsed tokenizer.json."""
    model = field(document, "model", dict, name)
    for key, accepted in MODEL.items():
        if model.get(key) not in accepted:
            raise InputError(f"{name}: model.{key} is {model[key]!r}; accepted: {' or '.join(map(repr, accepted))}")
    whole_first = field({"ignore_merges": False, **model}, "ignore_merges", bool, f"{name}: model")
    pairs = [
        (f"{name}, merge {i}", pair.split(" ") if isinstance(pair, str) else pair)
        for i, pair in enumerate(field(model, "merges", list, f"{name}: model"))
    ]
    specials = _added_tokens(document, name)
    made = {
        "".join(pair) for _, pair in pairs if isinstance(pair, list) and all(isinstance(part, str) for part in pair)
    }
    ids = ordinary_ids(field(model, "vocab", dict, f"{name}: model"), specials, made, name)
    merges = merge_list(pairs, ids, grow=False)
    patterns, normalizer = _cuts(document, name), _normalizer(document, name)
    return build(name, ids, merges, patterns, specials, whole_first=whole_first, normalizer=normalizer)


def _added_tokens(document: dict, name: str) -> dict[str, int]:
    specials: dict[str, int] = {}
    for i, entry in enumerate(field({"added_tokens": [], **document}, "added_tokens", list, name)):
        where = f"{name}, added token {i}"
        content = field(entry, "content", str, where)
        for flag in ("lstrip", "rstrip", "single_word"):
            if entry.get(flag):
                raise InputError(f"{where} ({content!r}): {flag} is {entry[flag]!r}; accepted: false")
        if content in specials:
            raise InputError(f"{where}: {content!r} again; each added token comes once")
        specials[content] = field(entry, "id", int, where)
    return specials


def _cuts(document: dict, name: str) -> tuple[str, ...]:
    """Patterns of the pre-tokenizer."""
    steps = _steps(document.get("pre_tokenizer"), "pretokenizers", f"{name}: pre_tokenizer")
    kinds = [step["type"] for step in steps]
    for kind in kinds:
        if kind not in ("ByteLevel", "Split", "Digits"):
            raise InputError(
                f"{name}: pre_tokenizer has the type {kind!r}; accepted: ByteLevel, Split, Digits, Sequence"
            )
    if kinds.count("ByteLevel") != 1 or kinds[-1] != "ByteLevel":
        raise InputError(f"{name}: pre_tokenizer is {kinds}; accepted: one ByteLevel, at the end")
    return tuple(chain.from_iterable(_cut(step, f"{name}: {step['type']}") for step in steps))


def _cut(step: dict, where: str) -> list[str]:
    if step["type"] == "ByteLevel":
        _only(step, "add_prefix_space", False, where)
        return [GPT2] if field({"use_regex": True, **step}, "use_regex", bool, where) else []
    if step["type"] == "Digits":
        return [r"\p{N}" if field(step, "individual_digits", bool, where) else r"\p{N}+"]
    _only(step, "behavior", "Isolated", where)
    _only(step, "invert", False, where)
    pattern = field(step, "pattern", dict, where)
    if len(pattern) != 1 or not {"Regex", "String"} & set(pattern):
        raise InputError(f"{where}.pattern has {list(pattern)[:5]}; accepted: Regex or String")
    if "Regex" in pattern:
        return [_portable(field(pattern, "Regex", str, where), where)]
    return [regex.escape(field(pattern, "String", str, where), special_only=True)]


def _normalizer(document: dict, name: str) -> str | None:
    steps = _steps(document.get("normalizer"), "normalizers", f"{name}: normalizer")
    kinds = [step["type"] for step in steps]
    if len(kinds) > 1 or not set(kinds) <= set(NORMALIZERS):
        raise InputError(f"{name}: normalizer is {', '.join(map(str, kinds))}; accepted: none or one of {NORMALIZERS}")
    return kinds[0] if kinds else None


def _steps(value: Any, key: str, where: str) -> list[dict]:
    """The steps of a component, with sequences laid flat."""
    steps, rest = [], [] if value is None else [value]
    while rest:
        step = rest.pop(0)
        if field(step, "type", str, where) == "Sequence":
            rest = [*field(step, key, list, where), *rest]
        else:
            steps.append(step)
    return steps


def _only(step: dict, key: str, accepted: Any, where: str) -> None:
    if key not in step or step[key] != accepted:
        raise InputError(f"{where}: {key} is {step.get(key)!r}; accepted: {accepted!r}")


def _portable(pattern: str, where: str) -> str:
    """The pattern, if it means the same in tokenizer.json."""
    found = FOREIGN.search(pattern) or ANCHOR.search(CLASS.sub("", pattern))
    if found:
        raise InputError(
            f"{where}: {found[0]!r} in the pattern {pattern!r} has another meaning in tokenizer.json than here"
        )
    return pattern


def _all_splits(ids: Mapping[bytes, int]) -> list[Merge]:
    """All pairs of tokens whose concatenation is a token, by the id of that.

    More than one pair for a token does no harm: merging the token's bytes comes to only one pair before it.
    """
    splits = ((token[:i], token[i:]) for token in sorted(ids, key=ids.__getitem__) for i in range(1, len(token)))
    return [(left, right) for left, right in splits if left in ids and right in ids]
