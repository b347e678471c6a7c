"""Texts to token ids, by the library `tokenizers`, from the files of a checkpoint.

The first of these that is there is read:

    tokenizer.json                   the whole tokeniser, of any kind
    vocab.json and merges.txt        byte pairs: CLIP, RoBERTa, GPT-2
    vocab.txt                        WordPiece: BERT
    bpe_simple_vocab_16e6.txt[.gz]   byte pairs of CLIP, as OpenAI released them

They lie in a folder, or in an archive such as a wheel. Every text comes out as long as
the context: longer ones are cut, and keep their end token; the mask says what is
padding. It is the token that the checkpoint names, as in `transformers`, else the one
with the usual name, else id 0, as in `open_clip`. To CLIP it makes no difference:
attention is causal, and the *first* end token gives the feature.
"""

import functools
import gzip
import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from centermerge_jax.data import tokenizer_kinds
from centermerge_jax.errors import CheckpointError, ParameterError

Text = str | tuple[str, str]
"""A text, or two that are judged together."""

_Files = Mapping[str, Callable[[], bytes]]
"""How to read each file, by its name without folders."""

_BYTE_PAIRS = ("vocab.json", "merges.txt")
_CLIP = ("bpe_simple_vocab_16e6.txt", "bpe_simple_vocab_16e6.txt.gz")
_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")
_KNOWN = ("tokenizer.json", *_BYTE_PAIRS, "vocab.txt", *_CLIP, *_CONFIGS)
_DAMAGE = (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile)


@dataclass(frozen=True, eq=False)
class Tokens:
    """Texts as models take them.

    Attributes:
      ids: Tokens, padded on the right.
      mask: 1 where there is a token, 0 where there is padding.
      types: 0, and 1 in the second text of a pair where the tokeniser marks it.
    """

    ids: Int32[np.ndarray, "n t"]
    mask: Int32[np.ndarray, "n t"]
    types: Int32[np.ndarray, "n t"]


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokeniser with its context; it can be pickled for worker processes.

    Attributes:
      inner: The library's tokeniser, with truncation and padding switched on.
      context: Length of every text in tokens.
    """

    inner: Any
    context: int

    def __call__(self, texts: Sequence[Text]) -> Tokens:
        """Tokens of texts, or of pairs of texts."""
        found = self.inner.encode_batch(list(texts))
        shape = (len(found), self.context)  # stated, so that no texts have one too

        def column(field: str) -> Int32[np.ndarray, "n t"]:
            rows = [getattr(encoding, field) for encoding in found]
            return np.array(rows, np.int32).reshape(shape)

        return Tokens(column("ids"), column("attention_mask"), column("type_ids"))

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides which tokens a text has."""
        return hashlib.sha256(self.inner.to_str().encode()).hexdigest()


def load_tokenizer(
    path: str | Path, *, context: int, vocabulary: int | None = None
) -> Tokenizer:
    """Reads the tokeniser of a checkpoint.

    Args:
      path: A folder, one of its files, or an archive that holds them.
      context: Length of every text in tokens, start and end included.
      vocabulary: Rows of the model's embedding, to be compared.

    Returns:
      A function from texts to `Tokens`.

    Raises:
      CheckpointError: There are no such files, they are damaged, or they belong to a
        larger vocabulary than the model has.
      ParameterError: The context has no room for a token beside start and end.
    """
    path = Path(path)
    files = _files(path)
    inner = _built(files, path)
    added = inner.num_special_tokens_to_add(is_pair=False)
    if context <= added:
        raise ParameterError(
            f"context must be more than the {added} tokens that every text gets; "
            f"got {context}"
        )
    highest = max(inner.get_vocab(with_added_tokens=True).values())
    if vocabulary is not None and highest >= vocabulary:
        raise CheckpointError(
            f"{path}: the tokeniser has ids up to {highest}, the model's embedding has "
            f"{vocabulary} rows; it is the tokeniser of another model"
        )
    number, token = _padding(inner, files, path)
    inner.enable_truncation(max_length=context)
    inner.enable_padding(length=context, pad_id=number, pad_token=token)
    return Tokenizer(inner, context)


def _files(path: Path) -> _Files:
    if path.is_dir():
        return _beside(path, _KNOWN)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file or folder")
    if zipfile.is_zipfile(path):
        return _members(path)
    if path.name in _BYTE_PAIRS:  # neither is anything without the other
        return _beside(path.parent, (*_BYTE_PAIRS, *_CONFIGS))
    if path.name in _KNOWN:
        return _beside(path.parent, (path.name, *_CONFIGS))
    return {"tokenizer.json" if path.suffix == ".json" else path.name: path.read_bytes}


def _beside(folder: Path, names: Sequence[str]) -> _Files:
    return {n: (folder / n).read_bytes for n in names if (folder / n).is_file()}


def _members(path: Path) -> _Files:
    """Files in any folder of an archive."""

    def read(member: str) -> bytes:
        with zipfile.ZipFile(path) as archive:
            return archive.read(member)

    with zipfile.ZipFile(path) as archive:
        members = archive.namelist()
    found = {}
    for name in _KNOWN:
        called = [m for m in members if m.rpartition("/")[2] == name]
        if len(called) > 1:
            raise CheckpointError(
                f"{path} holds several files called {name}: unpack it, and give the "
                f"one that is meant: {', '.join(called[:5])}"
            )
        if called:
            found[name] = functools.partial(read, called[0])
    return found


def _built(files: _Files, path: Path) -> Any:
    """The library's tokeniser, whatever files it is in."""
    try:
        import tokenizers  # noqa: F401  for what the modules below import
    except ImportError as error:
        raise CheckpointError(
            f"{path}: to read texts takes a package: pip install tokenizers"
        ) from error
    try:
        inner = _read(files)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:
        # The library raises nothing more special than Exception itself.
        if type(error) is Exception or isinstance(error, _DAMAGE):
            raise CheckpointError(f"{path}: no readable tokeniser: {error}") from error
        raise
    if inner is None:
        missing = [name for name in _BYTE_PAIRS if name not in files]
        half = f"; {missing[0]} is missing" if len(missing) == 1 else ""
        raise CheckpointError(
            f"{path}: there is no tokeniser in it: looked for tokenizer.json, for "
            f"vocab.json with merges.txt, for vocab.txt, and for {_CLIP[1]}{half}"
        )
    return inner


def _read(files: _Files) -> Any:
    def text(name: str) -> str:
        raw = files[name]()
        return (gzip.decompress(raw) if name.endswith(".gz") else raw).decode()

    if "tokenizer.json" in files:
        from tokenizers import Tokenizer as Inner

        return Inner.from_str(text("tokenizer.json"))
    if all(name in files for name in _BYTE_PAIRS):
        vocab = _entries(files, "vocab.json")
        return tokenizer_kinds.byte_pairs(vocab, text("merges.txt"))
    if "vocab.txt" in files:
        config = _entries(files, "tokenizer_config.json")
        return tokenizer_kinds.word_pieces(text("vocab.txt"), config)
    for name in _CLIP:
        if name in files:
            return tokenizer_kinds.openai_clip(text(name))
    return None


def _entries(files: _Files, name: str) -> Mapping[str, Any]:
    """What a JSON file holds; nothing if there is none."""
    found = json.loads(files[name]()) if name in files else {}
    if not isinstance(found, dict):
        raise CheckpointError(f"{name} holds no JSON object")
    return found


def _padding(inner: Any, files: _Files, path: Path) -> tuple[int, str]:
    """Id and name of the padding token."""
    if inner.padding:
        return inner.padding["pad_id"], inner.padding["pad_token"]
    named = []
    for name in _CONFIGS:
        try:
            token = _entries(files, name).get("pad_token")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: {name}: {error}") from error
        named.append(token["content"] if isinstance(token, dict) else token)
    for token in (*named, "<pad>", "[PAD]"):
        if token and (number := inner.token_to_id(token)) is not None:
            return number, token
    return 0, inner.id_to_token(0)
