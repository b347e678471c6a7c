"""Printing into a pipe whose reader may go away."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_pipe() -> Iterator[None]:
    """Ends the block silently when the reader of what it prints (head, less) has gone.

    Example:
      >>> with quiet_pipe():
      ...     print("hello")
      hello
    """
    try:
        yield
        sys.stdout.flush()  # else it fails at exit, where nobody can catch it
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
