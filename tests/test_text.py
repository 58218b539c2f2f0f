"""Byte-level BPE: exact against a naive implementation, lossless, trainable like Hugging Face's, and safe."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import InputError
from zoo.text import PATTERNS, BPETokenizer, Vocabulary
from zoo.text.bpe import Merger
from zoo.text.patterns import DIGITS_FROM_THE_RIGHT
from zoo.text.pruning import prune
from zoo.text.segment import Dropout, Fewest, Greedy, stochastok
from zoo.text.superwords import superbpe
from zoo.text.trainer import extend, train

SPECIALS = ("<|endoftext|>", "<|end|>")
TEXTS = (
    "The quick brown fox jumps over the lazy dog. It's 12345 o'clock!\n\n  def f(x):\n    return x ** 2\n",
    "Größe, naïve café; Здравствуй, мир! 你好,世界。 こんにちは 안녕 नमस्ते 👩‍👩‍👧 \r\n\ttabs  and   blanks   ",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa bbbbbbbb abababababab 0000000000 ---------- =====\x00\x1f",
)


@pytest.fixture(scope="module")
def corpus():
    generator = random.Random(0)
    syllables = "ka to mi ren sol ding ple ar ist qu".split()
    made = ["".join(generator.choices(syllables, k=generator.randint(1, 4))) for _ in range(500)]
    words = [*made, *" ".join(TEXTS).split()]
    return [" ".join(generator.choices(words, k=6)) + generator.choice(" \n.") for _ in range(4000)] + [*TEXTS] * 20


@pytest.fixture(scope="module")
def vocabulary(corpus):
    return train(corpus, 700, [PATTERNS["gpt2"]], specials=SPECIALS)


@pytest.fixture(scope="module")
def tokenizer(vocabulary):
    return BPETokenizer(vocabulary)


def with_ranks(vocabulary):
    return Vocabulary(vocabulary.ids, None, vocabulary.patterns, vocabulary.specials)


def naive(vocabulary, piece):
    """BPE by its definition: merge the first pair in the list that there is, from the left, as often as one is."""
    rank = {pair: i for i, pair in reversed(list(enumerate(vocabulary.merges)))}
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while True:
        found = [(rank[pair], i) for i, pair in enumerate(zip(parts, parts[1:], strict=False)) if pair in rank]
        if not found:
            return [vocabulary.ids[part] for part in parts]
        _, i = min(found)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


PIECES = st.one_of(
    st.binary(max_size=60),
    st.text("ab ", max_size=300).map(str.encode),
    st.lists(st.tuples(st.sampled_from([b"a", b"b", b" ", b"0", b"-"]), st.integers(1, 90)), max_size=8).map(
        lambda runs: b"".join(char * n for char, n in runs)
    ),
)


@settings(max_examples=200, deadline=None)
@given(piece=PIECES)
def test_three_ways_to_merge_equal_the_definition(vocabulary, piece):
    merge = Merger(vocabulary)
    expected = naive(vocabulary, piece)
    ids = [vocabulary.ids[bytes([byte])] for byte in piece]
    assert merge._scan(list(ids)) == expected
    assert merge._heap(list(ids)) == expected
    runs = [(number, 1) for number in ids]
    for i in range(len(runs) - 1, 0, -1):
        if runs[i][0] == runs[i - 1][0]:
            runs[i - 1 : i + 1] = [(runs[i][0], runs[i][1] + 1)]
    assert merge._runs(runs) in (expected, None)
    assert list(merge(piece)) == expected


def test_runs_are_merged_as_runs(vocabulary):
    merge = Merger(vocabulary)
    for piece in (b"a" * 1_000, b" " * 999, b"a" * 500 + b"b" * 301):
        assert merge._runs([(vocabulary.ids[bytes([byte])], n) for byte, n in Counter(piece).items()]) is not None
    assert BPETokenizer(vocabulary).encode(" " * 3_000_000).size < 3_000_000


@settings(max_examples=300, deadline=None)
@given(data=st.one_of(st.binary(), st.text().map(lambda text: text.encode(errors="surrogatepass"))))
def test_bytes_come_back(tokenizer, data):
    assert tokenizer.decode_bytes(tokenizer.encode(data)) == data


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_text_comes_back_and_streams(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and tokenizer.decode(ids) == text
    assert np.array_equal(ids, tokenizer.encode(text.encode()))
    stream = tokenizer.stream()
    parts = [stream.push(number) for number in ids.tolist()]
    assert "".join(parts) + stream.finish() == text and all("\ufffd" not in part or "\ufffd" in text for part in parts)


def test_a_list_is_encoded_one_by_one(tokenizer):
    found = tokenizer.encode([*TEXTS, ""])
    assert all(np.array_equal(a, tokenizer.encode(b)) for a, b in zip(found, [*TEXTS, ""], strict=True))
    assert found[-1].shape == (0,) and tokenizer.decode(found[-1]) == ""


@pytest.mark.parametrize("kind", [str, str.encode])
def test_special_tokens_only_where_they_are_allowed(tokenizer, kind):
    text = kind("a<|endoftext|>b<|end|>")
    end, other = (tokenizer.vocabulary.specials[name] for name in SPECIALS)
    plain = tokenizer.encode(text)
    assert not {end, other} & set(plain.tolist())
    one = tokenizer.encode(text, allowed_special={"<|endoftext|>"}).tolist()
    assert end in one and other not in one
    both = tokenizer.encode(text, allowed_special="all").tolist()
    assert both[1] == end and both[-1] == other and len(both) == 4
    assert tokenizer.decode(plain) == tokenizer.decode(one) == tokenizer.decode(both) == "a<|endoftext|>b<|end|>"


@pytest.mark.parametrize("errors, expected", [("replace", b"a\xef\xbf\xbdb"), ("surrogatepass", b"a\xed\xa0\x80b")])
def test_lone_surrogates(tokenizer, errors, expected):
    with pytest.raises(InputError, match="lone surrogate .* at 1"):
        tokenizer.encode("a\ud800b")
    assert tokenizer.decode_bytes(tokenizer.encode("a\ud800b", errors=errors)) == expected


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda t: t.encode(3), "int; accepted: str, bytes"),
        (lambda t: t.encode("a", allowed_special=["<|endoftex|>"]), "did you mean '<|endoftext|>'"),
        (lambda t: t.decode([0, 1, 700]), "id 700 at 2"),
        (lambda t: t.decode([0, -1]), "id -1 at 1"),
        (lambda t: t.decode([2**40]), "id 1099511627776 at 0"),
        (lambda t: t.decode([0.5]), "ids are float64"),
        (lambda t: t.decode([[1, 2]]), "accepted: integers [n]"),
        (lambda t: t.decode([0xFF]), "not UTF-8"),
        (lambda t: Dropout(t.vocabulary, 1.5, 0), "probability is 1.5"),
        (lambda t: train([], 300, [PATTERNS["gpt2"]]), "nothing to train on"),
        (lambda t: train([""], 300, [PATTERNS["gpt2"]]), "nothing to train on"),
        (lambda t: train(["a", 3], 300, [PATTERNS["gpt2"]]), "text 1 is int"),
        (lambda t: train(["a"], 256, [PATTERNS["gpt2"]], specials=["<s>"]), "size is 256; accepted: at least 257"),
        (lambda t: train(["a"], 300, ["("]), "no regular expression"),
        (lambda t: superbpe(iter(["a"]), 300, [PATTERNS["gpt2"]]), "iterator"),
        (lambda t: superbpe(["a"], 300, [PATTERNS["gpt2"]], start=301), "start is 301"),
        (lambda t: prune(t.vocabulary, TEXTS, 100), "size is 100; accepted: 258"),
    ],
)
def test_bad_input_is_one_line(tokenizer, call, message):
    with pytest.raises(InputError) as error:
        call(tokenizer)
    assert message in str(error.value) and "\n" not in str(error.value)


def ids_of(*more):
    return {bytes([byte]): byte for byte in range(256)} | dict(more)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (({b"a": 0}, (), ()), "lacks 255 of the 256"),
        ((ids_of((b"ab", 255)), (), ()), "id 255 belongs"),
        ((ids_of((b"ab", -3)), (), ()), "ids start at 0"),
        ((ids_of(), ((b"a", b"b"),), ()), "needs the token b'ab'"),
        ((ids_of(), (), (), {"<s>": 7}), "id 7 belongs"),
        ((ids_of(), (), (), {}, False, "NFX"), "unknown normalizer"),
    ],
)
def test_a_vocabulary_is_checked(arguments, message):
    with pytest.raises(InputError, match=message):
        Vocabulary(*arguments)


def test_ids_between_tokens_are_none():
    tokenizer = BPETokenizer(Vocabulary(ids_of((b"ab", 300)), ((b"a", b"b"),), (), {"<s>": 400}))
    assert tokenizer.encode("abc").tolist() == [300, 99] and tokenizer.vocabulary.size == 401
    with pytest.raises(InputError, match="id 301 at 1"):
        tokenizer.decode([300, 301])


def test_patterns_follow_each_other_and_lose_nothing():
    vocabulary = Vocabulary(ids_of(), (), (r"\d{1,3}", r"[a-z]+", r"(x)|y"))
    assert vocabulary.cut("ab1234-xcd y") == ["ab", "123", "4", "-", "x", "cd", " ", "y"]
    assert vocabulary.cut(b"ab\xff\xfecd") == ["ab", b"\xff\xfe", "cd"]
    assert vocabulary.cut("") == []


def test_digits_from_the_right():
    vocabulary = Vocabulary(ids_of(), (), (DIGITS_FROM_THE_RIGHT, PATTERNS["gpt2"]))
    assert vocabulary.cut("a1234567 12 1000.25") == ["a", "1", "234", "567", " ", "12", " ", "1", "000", ".", "25"]


# -- the fast engine


@pytest.fixture(scope="module")
def fast_and_plain(vocabulary):
    pytest.importorskip("tiktoken")
    found = {}
    for name in ("gpt2", "cl100k", "o200k", "qwen"):
        ranks = Vocabulary(vocabulary.ids, None, (PATTERNS[name],))
        found[name] = BPETokenizer(ranks), BPETokenizer(ranks, plain=True)
    return found


@pytest.mark.parametrize("name", ["gpt2", "cl100k", "o200k", "qwen"])
def test_tiktoken_changes_no_id(fast_and_plain, name):
    fast, plain = fast_and_plain[name]
    assert (fast.engine, plain.engine) == ("tiktoken", "python")
    generator = random.Random(0)
    likely = [*range(128), *map(ord, "ſßǅʰªé\u0301\u3000\x85\u2028你नर्१Ⅷ½")]
    for limit in [0x80, 0x800, 0x10000, 0x110000] * 500:
        points = [
            generator.randrange(limit) if generator.random() < 0.5 else generator.choice(likely) for _ in range(25)
        ]
        text = "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)
        assert np.array_equal(fast.encode(text), plain.encode(text)), text


def test_what_tiktoken_gets_wrong_goes_the_plain_way(fast_and_plain):
    from zoo.text.engine import drifted

    fast, plain = fast_and_plain["o200k"]
    strange = [chr(point) for point in np.flatnonzero(drifted())]
    for text in ["a" + char + "b1" for char in strange[:: max(1, len(strange) // 50)]] + [
        " " * 1_200_000 + "a",
        "\n \t" * 400_000,
    ]:
        assert fast._fast(text) is None and np.array_equal(fast.encode(text), plain.encode(text))


def test_tiktoken_is_left_where_it_cannot_be_equal(vocabulary):
    for other in (
        vocabulary,
        Vocabulary(vocabulary.ids, None, (r"\d+", r"\D+")),
        Vocabulary(vocabulary.ids, None, (), {}, False, "NFC"),
    ):
        assert BPETokenizer(other).engine == "python"


# -- training


def naive_merges(corpus, number):
    """BPE training by its definition, with Hugging Face's rule for ties, on pieces that are cut at blanks."""
    from zoo.text.trainer import shown_bytes

    order = {bytes([byte]): i for i, byte in enumerate(sorted(range(256), key=shown_bytes().__getitem__))}
    words = Counter(tuple(bytes([b]) for b in word.encode()) for text in corpus for word in text.split())
    merges = []
    while len(merges) < number:
        pairs: Counter = Counter()
        for word, n in words.items():
            for pair in zip(word, word[1:], strict=False):
                pairs[pair] += n
        best = min(pairs, key=lambda pair: (-pairs[pair], order[pair[0]], order[pair[1]]))
        merges.append(best)
        order.setdefault(b"".join(best), len(order))
        merged: Counter = Counter()
        for word, n in words.items():
            parts, i = [], 0
            while i < len(word):
                both = word[i : i + 2] == best
                parts.append(b"".join(best) if both else word[i])
                i += 1 + both
            merged[tuple(parts)] += n
        words = merged
    return merges


def test_training_equals_its_definition(corpus):
    few = corpus[:200]
    found = train(few, 256 + 60, [r"\S+"])
    with_blanks = [pair for pair in found.merges if not (pair[0] + pair[1]).isspace()]
    expected = naive_merges(few, len(with_blanks))
    assert with_blanks == expected


def test_training_equals_hugging_face(corpus):
    tokenizers = pytest.importorskip("tokenizers")
    from zoo.text.trainer import shown_bytes

    byte_level = tokenizers.pre_tokenizers.ByteLevel
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = byte_level(add_prefix_space=False)
    theirs.train_from_iterator(corpus, trainer)
    ours = train(corpus, 600, [PATTERNS["gpt2"]])
    shown = shown_bytes()
    assert [tuple("".join(shown[b] for b in part) for part in pair) for pair in ours.merges] == merges_of(theirs)


def merges_of(tokenizer):
    import json

    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def test_the_order_of_texts_does_not_matter(corpus, vocabulary):
    shuffled = random.Random(1).sample(corpus, len(corpus))
    assert train(iter(shuffled), 700, [PATTERNS["gpt2"]], specials=SPECIALS).merges == vocabulary.merges


def test_a_small_corpus_gives_fewer_tokens():
    found = train(["abab"], 400, [PATTERNS["gpt2"]])
    assert found.merges == [(b"a", b"b"), (b"ab", b"ab")] and found.size == 258
    assert train(["abab"], 400, [PATTERNS["gpt2"]], least=2).merges == [(b"a", b"b")]
    assert max(map(len, train(["abab" * 9], 400, [PATTERNS["none"]], longest=4).ids)) == 4


def test_extending_keeps_ids_and_merges(vocabulary, corpus):
    more = extend(vocabulary, [*corpus, "brandnew words " * 50], 800)
    assert more.size == 800 and more.merges[: len(vocabulary.merges)] == vocabulary.merges
    assert all(more.ids[token] == number for token, number in vocabulary.ids.items())
    assert more.specials == vocabulary.specials
    tokenizer = BPETokenizer(more)
    assert tokenizer.encode("brandnew words").size < BPETokenizer(vocabulary).encode("brandnew words").size
    ranks = extend(with_ranks(vocabulary), corpus, 720)
    assert ranks.merges is None and all(ranks.ids[token] == number for token, number in vocabulary.ids.items())


def test_superbpe_spans_words_and_keeps_the_first_merges(corpus):
    phrase = "by the way of the lake we go: all of us"
    corpus = [*corpus, *[phrase] * 800]
    plain = train(corpus, 600, [PATTERNS["gpt2"]])
    found = superbpe(corpus, 600, [PATTERNS["gpt2"]], start=500, specials=SPECIALS)
    assert found.merges[: 500 - 256] == plain.merges[: 500 - 256] and found.size == 600
    assert 2 <= max(len(token.split()) for token in found.ids) <= 4
    assert not any(b": " in token for token in found.ids)
    plain, found = BPETokenizer(plain), BPETokenizer(found)
    assert found.encode(phrase).size < 0.7 * plain.encode(phrase).size
    assert found.decode(found.encode(" ".join(TEXTS))) == " ".join(TEXTS)


@pytest.mark.parametrize("ranks", [False, True])
def test_pruned_tokens_are_what_their_bytes_give(vocabulary, ranks):
    old = with_ranks(vocabulary) if ranks else vocabulary
    new, new_of_old = prune(old, TEXTS, 400)
    assert new.size == 400 == len(new.ids) + len(SPECIALS) and new_of_old.shape == (old.size,)
    merge = Merger(new)
    assert all(merge.reaches(token) for token in new.ids)
    if not ranks:
        assert all(merge._scan([new.ids[bytes([b])] for b in token]) == [new.ids[token]] for token in new.ids)
    for token, number in [*old.ids.items(), *old.specials.items()]:
        kept = new.ids if isinstance(token, bytes) else new.specials
        assert new_of_old[number] == kept.get(token, -1)
    assert sorted(new_of_old[new_of_old >= 0]) == list(range(400))


# -- other ways to ids


def test_dropout(vocabulary, tokenizer):
    text = TEXTS[0]
    for probability in (0.0, 0.3, 1.0):
        one, two = (BPETokenizer(vocabulary, Dropout(vocabulary, probability, 5)) for _ in range(2))
        ids = one.encode(text)
        assert np.array_equal(ids, two.encode(text)) and one.decode(ids) == text
        if probability == 0:
            assert np.array_equal(ids, tokenizer.encode(text))
        if probability == 0.3:
            assert tokenizer.encode(text).size < ids.size < len(text) and not np.array_equal(ids, one.encode(text))
        if probability == 1:
            assert ids.size == len(text.encode())


def test_stochastok_draws_as_the_authors_do(vocabulary, tokenizer):
    ids = [*tokenizer.encode(TEXTS[0]).tolist(), vocabulary.specials[SPECIALS[0]]]
    np.random.seed(3)
    random.seed(3)
    expected = list(ids)
    for _ in range(int(len(ids) * 0.5)):  # their procedure, with the global generators that they use
        i = np.random.randint(len(expected))
        token = vocabulary.tokens[expected[i]] if expected[i] < 256 + len(vocabulary.merges) else b""
        both = [(vocabulary.ids.get(token[:j]), vocabulary.ids.get(token[j:])) for j in range(1, len(token))]
        both = [pair for pair in both if None not in pair]
        if both:
            expected[i : i + 1] = random.choice(both)
    found = stochastok(vocabulary, ids, 0.5, seed=3)
    assert found.tolist() == expected and len(expected) > len(ids)
    assert tokenizer.decode(found) == tokenizer.decode(ids)


@settings(max_examples=100, deadline=None)
@given(text=st.text("ab 0-fox", max_size=80))
def test_fewest_is_never_more_than_others(vocabulary, tokenizer, text):
    greedy, fewest = (BPETokenizer(vocabulary, kind(vocabulary)) for kind in (Greedy, Fewest))
    counts = [one.encode(text).size for one in (fewest, greedy, tokenizer)]
    assert counts[0] == min(counts)
    assert greedy.decode(greedy.encode(text)) == fewest.decode(fewest.encode(text)) == text


# -- the benchmark


def test_bench_text_has_a_row_for_each_goal(monkeypatch):
    pytest.importorskip("tiktoken")
    pytest.importorskip("tokenizers")
    from zoo import bench_report, bench_rows, bench_text

    for module, name, value in (
        (bench_text, "SIZES", (300, 400)),
        (bench_text, "TRAINED", 40_000),
        (bench_text, "ENCODED", 40_000),
        (bench_text, "TURNS", 1),
        (bench_rows, "RUNS", 1),
        (bench_rows, "SECONDS", 0.0),
    ):
        monkeypatch.setattr(module, name, value)
    bench_text.corpus.cache_clear()
    bench_text.vocabulary.cache_clear()
    rows = list(bench_text.text())
    names = " ".join(row["case"] for row in rows)
    for what, case, *_ in bench_report.GOALS:
        assert what != "text" or case.split(",")[0] in names
    assert all(row["ours"] > 0 for row in rows) and all("tiktoken" in row["versions"] for row in rows)
