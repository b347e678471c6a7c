"""The command line: `centermerge merge|plan|evaluate|statistics|...`.

Thin: each command turns flags into a call of the library and prints what comes back.
Nothing heavy is imported before a command runs.
"""

import contextlib
import io
import re
import sys
import traceback
from collections.abc import Sequence

import tyro

from centermerge_jax.cli.commands import COMMANDS, Command
from centermerge_jax.errors import MergeError
from centermerge_jax.pipes import quiet_pipe

_PROG = "centermerge"
_DESCRIPTION = (
    "Merges models fine-tuned from one base into one multi-task model, without "
    "training."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits.

    Status 0: done. 2: something is wrong with what was asked for, said in one message
    on stderr. 130: interrupted. 1: a bug, with a traceback.
    """
    try:
        with quiet_pipe():
            _parse(sys.argv[1:] if arguments is None else arguments).run()
    except MergeError as error:
        sys.exit(_fail(str(error)))
    except KeyboardInterrupt as interrupt:
        kept = str(interrupt) or "nothing is left half-written"
        print(f"interrupted; {kept}", file=sys.stderr)
        sys.exit(130)
    except MemoryError as error:
        sys.exit(_fail(f"out of memory: {error}; see `{_PROG} plan`"))
    except Exception:  # noqa: BLE001  the last resort: say that it is a bug
        traceback.print_exc()
        print(f"This is a bug in {_PROG}; please report it.", file=sys.stderr)
        sys.exit(1)


def _parse(arguments: Sequence[str]) -> Command:
    """The command to run, as an object of one of the classes in `commands`."""
    heard = io.StringIO()
    try:
        with contextlib.redirect_stderr(heard):
            return tyro.extras.subcommand_cli_from_dict(
                COMMANDS, prog=_PROG, description=_DESCRIPTION, args=list(arguments)
            )
    except SystemExit as exit_:
        if exit_.code:
            sys.exit(_fail(_in_one_line(heard.getvalue())))
        raise


def _in_one_line(boxed: str) -> str:
    """The text of the parser's framed complaint, without frame, title and help."""
    framed = [line for line in boxed.splitlines() if not line.startswith("╭")]
    text = " ".join(line.strip("╰╯│─ ") for line in framed)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" (Argument helptext|For full helptext).*", "", text)
    return re.sub(r" Perhaps you meant: (--\S+).*", r"; did you mean \1?", text)


def _fail(message: str) -> int:
    print(f"ERROR: {message}", file=sys.stderr)
    return 2
