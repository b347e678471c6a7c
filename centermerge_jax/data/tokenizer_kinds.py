"""Tokenisers built from vocabularies: CLIP's, RoBERTa's, GPT-2's and BERT's.

Checkpoints without a `tokenizer.json` have their vocabulary in one file, the pairs of
tokens that are joined, if any, in another, and everything else in the code that once
used them. That code's rules are here, as settings of the library `tokenizers`.

References:
  Sennrich et al., Neural Machine Translation of Rare Words with Subword Units, 2016
  (byte pairs); Schuster and Nakajima, Japanese and Korean Voice Search, 2012
  (WordPiece).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from centermerge_jax.errors import CheckpointError

Pairs = Sequence[tuple[str, str]]
"""Tokens to join, the first pair first."""

_START, _END = "<|startoftext|>", "<|endoftext|>"
# 256 bytes, with and without the mark of a word's end; pairs; start and end.
_CLIP_PAIRS = 49_408 - 2 * 256 - 2
# What CLIP takes for a word (openai/CLIP, simple_tokenizer.py), after lower-casing.
_CLIP_WORD = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def openai_clip(text: str) -> Any:
    """CLIP's tokeniser from the list of pairs that OpenAI released.

    The vocabulary follows from it: bytes, bytes at the end of a word, what the pairs
    make in their order, start and end.

    Args:
      text: A heading and one pair a line; more lines than CLIP uses are left unread.

    Raises:
      CheckpointError: There are too few pairs, or a line is none.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    joined = pairs(text.split("\n")[1 : 1 + _CLIP_PAIRS])
    if len(joined) < _CLIP_PAIRS:
        raise CheckpointError(
            f"there are {len(joined)} pairs to join, expected at least {_CLIP_PAIRS}"
        )
    # Bytes that can be printed come first: the order of the characters they become.
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["".join(pair) for pair in joined] + [_START, _END]
    return _clip({token: i for i, token in enumerate(tokens)}, joined)


def byte_pairs(vocab: Mapping[str, int], text: str) -> Any:
    """The kind of tokeniser that a vocabulary of byte pairs belongs to.

    Args:
      vocab: Id of every token.
      text: One pair a line; a first line may name the version.

    Raises:
      CheckpointError: It is none of the known kinds, or incomplete.
    """
    lines = text.split("\n")
    joined = pairs(lines[1:] if lines[0].startswith("#version") else lines)
    if any(token.endswith("</w>") for token in vocab):
        return _clip(vocab, joined)
    if "<s>" in vocab and "</s>" in vocab:
        return _roberta(vocab, joined)
    if _END in vocab:
        return _on_bytes(vocab, joined, special=[_END])
    raise CheckpointError(
        "the vocabulary is not CLIP's, RoBERTa's or GPT-2's: it has neither tokens "
        f"that end in </w>, nor <s> and </s>, nor {_END}"
    )


def word_pieces(text: str, config: Mapping[str, Any]) -> Any:
    """BERT's tokeniser, cased or not as the configuration says.

    Args:
      text: The vocabulary, one token a line.
      config: What `tokenizer_config.json` holds. Where it says nothing, a vocabulary
        without capital letters is taken for an uncased one.

    Raises:
      CheckpointError: The vocabulary is incomplete.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    lines = text.removesuffix("\n").split("\n")
    vocab = {token.removesuffix("\r"): i for i, token in enumerate(lines)}
    _require(vocab, ("[UNK]", "[CLS]", "[SEP]"))
    cased = any(t != t.lower() for t in vocab if not t.startswith("["))
    inner = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))  # noqa: S106
    inner.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", not cased),
    )
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.BertProcessing(
        ("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"])
    )
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    inner.add_special_tokens([token for token in special if token in vocab])
    return inner


def pairs(lines: Sequence[str]) -> Pairs:
    """The pairs that lines of two tokens hold.

    Example:
      >>> pairs(["t h", "th e</w>", ""])
      [('t', 'h'), ('th', 'e</w>')]
    """
    found = []
    for line in lines:
        match line.split():
            case []:
                continue
            case [left, right]:
                found.append((left, right))
            case _:
                raise CheckpointError(f"a line of pairs to join is none: {line[:40]!r}")
    return found


def _clip(vocab: Mapping[str, int], joined: Pairs) -> Any:
    """Lower case, white space as one space, words between start and end.

    OpenAI's own function also repairs wrongly decoded text and HTML entities, which
    class names and prompts do not have; `transformers` leaves both as they are.
    """
    from tokenizers import Regex, normalizers, pre_tokenizers, processors

    _require(vocab, (_START, _END))
    inner = _on_bytes(vocab, joined, special=[_START, _END], suffix="</w>")
    one_space = normalizers.Replace(Regex(r"\s+"), " ")
    inner.normalizer = normalizers.Sequence(
        [normalizers.NFC(), one_space, normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(_CLIP_WORD), behavior="removed", invert=True)
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
    inner.post_processor = processors.RobertaProcessing(
        (_END, vocab[_END]),
        (_START, vocab[_START]),
        trim_offsets=False,
        add_prefix_space=False,
    )
    return inner


def _roberta(vocab: Mapping[str, int], joined: Pairs) -> Any:
    from tokenizers import processors

    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    present = [token for token in special if token in vocab]
    inner = _on_bytes(vocab, joined, special=present)
    inner.post_processor = processors.RobertaProcessing(
        ("</s>", vocab["</s>"]), ("<s>", vocab["<s>"]), add_prefix_space=False
    )
    return inner


def _on_bytes(
    vocab: Mapping[str, int],
    joined: Pairs,
    *,
    special: Sequence[str],
    suffix: str = "",
) -> Any:
    """Byte pairs; a vocabulary that lacks a byte would leave letters out of texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = pre_tokenizers.ByteLevel.alphabet()
    _require(vocab, sorted({*letters, *(f"{letter}{suffix}" for letter in letters)}))
    options = {"end_of_word_suffix": suffix} if suffix else {}
    model = models.BPE(vocab=dict(vocab), merges=list(joined), **options)
    inner = Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.add_special_tokens(list(special))
    return inner


def _require(vocab: Mapping[str, int], tokens: Sequence[str]) -> None:
    if missing := [token for token in tokens if token not in vocab]:
        raise CheckpointError(
            f"the vocabulary lacks {len(missing)} of the tokens that it must have: "
            f"{' '.join(missing[:5])}"
        )
