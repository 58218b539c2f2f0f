"""`zoo bench text`: byte-level BPE beside Hugging Face's tokenizers and bare tiktoken, on sources of Python's library.

training     8,192 and 32,768 tokens on 10 MB, and the memory of both, in processes of their own
encoding     with 32,768 tokens, each file by itself, no piece known before; plain Python and through tiktoken
decoding     the ids of these files
hostile      a million bytes that no pattern cuts
SuperBPE     tokens of a tenth of the files, held out, with as large a vocabulary
"""

from __future__ import annotations

import functools
import json
import random
import string
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from zoo.bench_rows import Row, in_turns, paired, peak_memory, repeated, row
from zoo.errors import InputError
from zoo.text import PATTERNS, BPETokenizer, Vocabulary, superbpe, train, write_tokenizer_json

# pyright: reportMissingImports=false
# (tiktoken and tokenizers are an extra)

SIZES = (8192, 32768)
TRAINED = 10_000_000  # bytes
ENCODED = 4_000_000
TURNS = 3
HUGGING_FACE = "tokenizers"


def text() -> Iterator[Row]:
    """Rates, seconds, memory and numbers of tokens.

    Raises:
        InputError: tiktoken or tokenizers is missing.
    """
    versions = installed()
    for part in (training, encoding, hostile, superwords):
        for measured in part():
            yield measured | {"versions": measured["versions"] | versions}


def installed() -> dict[str, str]:
    """The peers' versions."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return {name: version(name) for name in ("tiktoken", HUGGING_FACE, "regex")}
    except PackageNotFoundError as error:
        raise InputError(f"the peers of text need {error.name}: pip install 'tokenizer-zoo[text]'") from error


@functools.cache
def corpus(size: int) -> tuple[str, ...]:
    """Sources of Python's library, up to `size` bytes of them, each a text."""
    found, total = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" not in path.parts and total < size:
            found.append(path.read_text(encoding="utf-8", errors="ignore"))
            total += len(found[-1].encode())
    return tuple(found)


@functools.cache
def vocabulary(size: int) -> Vocabulary:
    """Trained here, by rank, so that tiktoken can have it."""
    trained = train(corpus(TRAINED), size, [PATTERNS["gpt2"]])
    return Vocabulary(trained.ids, None, trained.patterns)


# -- training


def training() -> Iterator[Row]:
    """Seconds and memory of one training, each in a process of its own, in turns."""
    megabytes = sum(len(one.encode()) for one in corpus(TRAINED)) / 1e6
    for size in SIZES:
        runs = [[apart(whose, size) for whose in ("ours", "theirs")] for _ in range(TURNS)]
        for field, unit in (("seconds", "s"), ("memory", "MiB")):
            mine, theirs = ([run[i][field] for run in runs] for i in range(2))
            ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
            case = f"training {field}, {size:,} tokens, {megabytes:.0f} MB"
            yield row("text", case, unit, mine, peer=sorted(theirs)[TURNS // 2], peer_name=HUGGING_FACE, ratios=ratios)


def apart(whose: str, size: int) -> dict[str, float]:
    call = f"from zoo import bench_text; bench_text.report({whose!r}, {size}, {TRAINED})"
    done = subprocess.run([sys.executable, "-c", call], check=True, capture_output=True)
    return json.loads(done.stdout)


def report(whose: str, size: int, trained: int) -> None:
    """Prints seconds and MiB of a training as JSON: what it takes beyond imports and texts."""
    texts = corpus(trained)
    call = (lambda: train(texts, size, [PATTERNS["gpt2"]])) if whose == "ours" else lambda: hugging_face(texts, size)
    start = time.perf_counter()
    memory = peak_memory(call)
    print(json.dumps({"seconds": time.perf_counter() - start, "memory": memory}))


def hugging_face(texts: tuple[str, ...], size: int) -> Any:
    """Their byte-level BPE, trained."""
    import tokenizers

    byte_level = tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    alphabet = byte_level.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


# -- encoding and decoding


def encoding() -> Iterator[Row]:
    """MB/s of UTF-8, one file after the other."""
    texts, ranks = corpus(ENCODED), vocabulary(SIZES[-1])
    size = sum(len(one.encode()) for one in texts)
    theirs, bare = peers(ranks)

    def put(name: str, call: Callable[[], Callable], peer: Callable, peer_name: str, inputs: Sequence = texts) -> Row:
        """`call` makes what encodes. Results are dropped: keeping a million Python ints would be measured, too."""
        runs = (lambda: deque(map(call(), inputs), maxlen=0)), (lambda: deque(map(peer, inputs), maxlen=0))
        return paired("text", name, "MB/s", size / 1e6, in_turns(*runs, TURNS), peer_name)

    yield put("encoding in plain Python", lambda: BPETokenizer(ranks, plain=True).encode, theirs.encode, HUGGING_FACE)
    fast = BPETokenizer(ranks)
    yield put("encoding through tiktoken", lambda: fast.encode, bare, "tiktoken")
    lists = [ids.tolist() for ids in fast.encode(list(texts))]
    yield put("decoding", lambda: fast.decode, theirs.decode, HUGGING_FACE, lists)


def peers(ranks: Vocabulary) -> tuple[Any, Callable[[str], Any]]:
    """tokenizers' tokenizer and tiktoken's function of the same vocabulary."""
    import tiktoken
    import tokenizers

    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer_json(ranks, Path(folder) / "tokenizer.json")
        theirs = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
    bare = tiktoken.Encoding("x", pat_str=ranks.patterns[0], mergeable_ranks=dict(ranks.ids), special_tokens={})
    return theirs, bare.encode_ordinary


def hostile() -> Iterator[Row]:
    """Seconds for a million bytes in one piece."""
    letters = "".join(random.Random(0).choices(string.ascii_lowercase, k=1_000_000))
    for plain in (True, False):
        tokenizer = BPETokenizer(vocabulary(SIZES[-1]), plain=plain)
        for name, one in {"a letter": "a" * 1_000_000, "blanks": " " * 1_000_000, "random letters": letters}.items():
            case = f"a million bytes, {name}, {'plain Python' if plain else 'through tiktoken'}"
            yield row("text", case, "s", repeated(lambda: tokenizer.encode(one)))  # noqa: B023


def superwords() -> Iterator[Row]:
    """Tokens of BPE and of SuperBPE; the ratio is how many more BPE has."""
    texts = corpus(TRAINED)
    held, seen = texts[::10], [one for i, one in enumerate(texts) if i % 10]
    mine, plain = (
        sum(ids.size for ids in BPETokenizer(kind).encode(list(held)))
        for kind in (superbpe(seen, SIZES[-1], [PATTERNS["gpt2"]]), train(seen, SIZES[-1], [PATTERNS["gpt2"]]))
    )
    case = f"SuperBPE, {SIZES[-1]:,} tokens, files held out"
    yield row("text", case, "tokens", [mine], peer=plain, peer_name="BPE", ratios=[plain / mine])
