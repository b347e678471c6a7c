"""A progress bar on stderr with the time left, for work that takes long."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[str, float], None]
"""Called with what is being done and the share of it that is done, in [0, 1]."""


def silent(what: str, share: float) -> None:
    """Reports to nobody."""
    del what, share


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Report]:
    """Shows a bar while the block runs, and nothing where there is no terminal.

    Args:
      quiet: Show nothing.

    Yields:
      The function to report to.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:44.44}"),
        BarColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    off = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=off) as bar:
        task = bar.add_task("", total=1.0)

        def report(what: str, share: float) -> None:
            bar.update(task, description=what, completed=share)

        yield report


def size_text(count: int) -> str:
    """A number of bytes in the unit that suits it.

    Example:
      >>> size_text(1536), size_text(88_200_000)
      ('1.5 kB', '88.2 MB')
    """
    if count < 1000:
        return f"{count} B"
    power = min(4, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.1f} {'_kMGT'[power]}B"
