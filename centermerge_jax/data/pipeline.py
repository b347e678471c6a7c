"""Batches of prepared examples: shuffled, padded, shared out among hosts, repeatable.

Grain orders and shares out the indices, and runs the threads or worker processes in
which a batch is read, decoded and prepared as one piece. The order depends on the seed
and on nothing else: not on the workers, nor on how many hosts there are. Of the whole
order, host h of H takes the entries h, h + H, h + 2H, ...; those that come out short
pad their last batch, or add one of padding alone, so that all hosts take as many steps
and no example is met twice.
"""

import dataclasses
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt8

from centermerge_jax.data.examples import Source, read
from centermerge_jax.data.preprocess import Preprocessing, prepare
from centermerge_jax.errors import DataError, ParameterError
from centermerge_jax.host_memory import cores

Tokenizer = Callable[[Sequence[Any]], Any]
"""From texts, or pairs of them, to `Tokens` of one length, even of no texts at all."""

_TOKENS = ("ids", "mask", "types")


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Examples that go through the model together.

    Attributes:
      labels: Index into the classes; 0 where padded.
      valid: False where padded: such rows count for nothing.
      index: Place in the source; -1 where padded.
      images: RGB bytes, of an image task.
      ids: Tokens, of a text task.
      mask: 1 where there is a token, 0 behind the end.
      types: Which of two texts a token belongs to, where the tokenizer says so.
    """

    labels: Int32[np.ndarray, " b"]
    valid: Bool[np.ndarray, " b"]
    index: Int64[np.ndarray, " b"]
    images: UInt8[np.ndarray, "b height width 3"] | None = None
    ids: Int32[np.ndarray, "b t"] | None = None
    mask: Int32[np.ndarray, "b t"] | None = None
    types: Int32[np.ndarray, "b t"] | None = None

    @property
    def inputs(self) -> Any:
        """What the model takes: the images, or `ids`, `mask` and `types` by name."""
        if self.images is not None:
            return self.images
        tokens = {name: getattr(self, name) for name in _TOKENS}
        return {name: x for name, x in tokens.items() if x is not None}

    @property
    def nbytes(self) -> int:
        """Memory of all its arrays."""
        return sum(x.nbytes for x in vars(self).values() if x is not None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Batches:
    """One pass over a source, as often as it is iterated; see `batches`."""

    source: Source
    batch: int
    preprocessing: Preprocessing | Tokenizer
    seed: int | None
    shard: tuple[int, int]
    workers: int
    start: int

    def __len__(self) -> int:
        """Batches in a pass, the same on all hosts."""
        return -(-len(self.source) // (self.batch * self.shard[1])) - self.start

    def __iter__(self) -> Iterator[Batch]:
        load = _Load(self.source, self.batch, self.preprocessing)
        count = 0
        for arrays in self._loaded(load):
            count += 1
            yield Batch(**arrays)
        for _ in range(count, len(self)):
            yield Batch(**load([]))

    def _loaded(self, load: "_Load") -> Iterator[dict[str, np.ndarray]]:
        import grain  # worker processes and all: only who reads needs it

        order = grain.MapDataset.range(len(self.source))
        if self.seed is not None:
            order = order.shuffle(seed=self.seed)
        mine = order.slice(slice(self.shard[0], None, self.shard[1]))
        pieces = mine.batch(self.batch, batch_fn=list).slice(slice(self.start, None))
        if not len(pieces):
            return
        # Pillow lets other threads run. Each makes a batch of its own, so there are not
        # too many; a worker process has a processor, and needs none.
        threads = 0 if self.workers else min(8, cores())
        reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        dataset = pieces.map(load).to_iter_dataset(reading)
        if self.workers:
            _allow_workers()
            options = grain.MultiprocessingOptions(num_workers=self.workers)
            dataset = dataset.mp_prefetch(options, _leave_interrupts)
        iterator = iter(dataset)
        try:
            for arrays in iterator:
                if self.workers:
                    # They hand over shared memory, of which there is little.
                    copied = {name: np.array(x) for name, x in arrays.items()}
                    arrays.clear()
                    yield copied
                else:
                    yield arrays
        finally:
            iterator.close()


def _leave_interrupts(worker: int, count: int) -> None:
    """Ctrl-C is for the process that started the workers: it ends them."""
    del worker, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _allow_workers() -> None:
    """Lets Grain 0.2.18 start workers in programs that do not parse absl's flags.

    Beside a JAX that can profile workers it asks for one of its flags without a thought
    of such programs, unlike for its other flags, and fails.
    """
    from absl import flags

    flag = "grain_enable_multiprocess_worker_profiling"
    if flag in flags.FLAGS and not flags.FLAGS.is_parsed():
        flags.FLAGS[flag].present = True


def batches(
    source: Source,
    *,
    batch: int,
    preprocessing: Preprocessing | Tokenizer,
    seed: int | None = None,
    shard: tuple[int, int] = (0, 1),
    workers: int = 0,
    start: int = 0,
) -> Batches:
    """All examples of a source, each exactly once over all hosts, in equal batches.

    Args:
      source: What `sources.open_source` gives, or any sequence of examples. With
        workers, it travels to them by pickling.
      batch: Examples in a batch of this host.
      preprocessing: What is done to images, or the tokenizer of texts.
      seed: Decides the order; the source's own if not given. A training loop takes
        another for each epoch.
      shard: Index of this host and number of hosts.
      workers: Processes that prepare; they take seconds to start. 0 does it in threads
        of this one, which is as good on few cores: decoding lets others run.
      start: First batch of the pass, where one that was interrupted goes on.

    Returns:
      What can be iterated, again and again, and has a length. The last batch is padded
      with zeros, where `valid` is False.

    Raises:
      ParameterError: A number is outside its range.
      DataError: The source is empty, or while iterating, an example cannot be read.

    Example:
      >>> from centermerge_jax.data.examples import Example
      >>> from centermerge_jax.data.preprocess import CLIP
      >>> images = np.zeros((5, 8, 8, 3), np.uint8)
      >>> source = [Example(image, label) for label, image in enumerate(images)]
      >>> passes = batches(source, batch=3, preprocessing=CLIP.at(4))
      >>> [(b.images.shape, b.labels.tolist(), b.valid.tolist()) for b in passes]
      [((3, 4, 4, 3), [0, 1, 2], [True, True, True]),
       ((3, 4, 4, 3), [3, 4, 0], [True, True, False])]
    """
    if batch < 1:
        raise ParameterError(f"batch is at least 1; got {batch}")
    if seed is not None and not 0 <= seed < 2**32:
        raise ParameterError(f"seed is at least 0 and below 2^32; got {seed}")
    if not 0 <= shard[0] < shard[1]:
        raise ParameterError(
            f"shard is (index, number of hosts), with the index below it; got {shard}"
        )
    if workers < 0:
        raise ParameterError(f"workers is at least 0; got {workers}")
    if not len(source):
        raise DataError("the source has no examples")
    made = Batches(
        source=source,
        batch=batch,
        preprocessing=preprocessing,
        seed=seed,
        shard=shard,
        workers=workers,
        start=0,
    )
    if not 0 <= start <= len(made):
        raise ParameterError(f"start is between 0 and {len(made)}; got {start}")
    return dataclasses.replace(made, start=start)


@dataclass(frozen=True)
class _Load:
    """Reads and prepares the examples of one batch."""

    source: Source
    batch: int
    preprocessing: Preprocessing | Tokenizer

    def __call__(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        examples = read(self.source, indices)
        count = len(examples)
        labels = np.zeros(self.batch, np.int32)
        labels[:count] = [example.label for example in examples]
        if (labels < 0).any():
            # What TFDS puts where labels are kept secret.
            hidden = indices[int(np.argmin(labels))]
            raise DataError(f"example {hidden} has no label (it is {labels.min()})")
        index = np.full(self.batch, -1, np.int64)
        index[:count] = indices
        valid = np.arange(self.batch) < count
        inputs = [example.input for example in examples]
        if isinstance(self.preprocessing, Preprocessing):
            arrays = _images(inputs, indices, self.batch, self.preprocessing)
        else:
            arrays = _tokens(inputs, self.batch, self.preprocessing)
        return {"labels": labels, "valid": valid, "index": index, **arrays}


def _images(
    pictures: Iterable[Any],
    indices: Sequence[int],
    batch: int,
    preprocessing: Preprocessing,
) -> dict[str, np.ndarray]:
    images = np.zeros((batch, preprocessing.size, preprocessing.size, 3), np.uint8)
    for row, (index, picture) in enumerate(zip(indices, pictures, strict=True)):
        try:
            images[row] = prepare(picture, preprocessing)
        except DataError as error:
            raise DataError(f"example {index}: {error}") from error
    return {"images": images}


def _tokens(
    texts: Sequence[Any], batch: int, tokenizer: Tokenizer
) -> dict[str, np.ndarray]:
    tokens = tokenizer(texts)
    arrays = {}
    for name in _TOKENS:
        given = getattr(tokens, name, None)
        if given is not None:
            arrays[name] = np.zeros((batch, given.shape[1]), np.int32)
            arrays[name][: len(texts)] = given
    return arrays
