"""Which versions made a file: records of every kind say it in one way."""

import functools
import platform
from importlib import metadata


def versions(*packages: str) -> dict[str, str | None]:
    """Of Python and of packages; None where one is not installed.

    Example:
      >>> versions("no-such-package")["no-such-package"] is None
      True
    """
    found = {package: _version(package) for package in packages}
    return {"python": platform.python_version(), **found}


@functools.cache
def _version(package: str) -> str | None:
    """Looked up once: a lookup reads the package's files."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
