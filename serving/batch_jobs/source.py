"""Where input lies: files, globs and URLs."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from glob import has_magic, iglob
from pathlib import Path
from typing import Any

from ...backends.errors import UnsupportedError
from .errors import InputError


def is_url(place: str) -> bool:
    """Whether it names a place that is reached through fsspec; file:// is a path."""
    return "://" in place and not place.startswith("file://")


def local_path(place: str) -> Path:
    return Path(place.removeprefix("file://"))


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        UnsupportedError: fsspec, or what it needs for this kind of URL, is not installed.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise UnsupportedError(f"{url}: URLs need fsspec; pip install 'distaff[remote]'") from error
    try:
        return url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UnsupportedError(f"{url}: {error}; gs:// needs gcsfs, s3:// needs s3fs") from error


def expand(places: Sequence[str]) -> tuple[str, ...]:
    """The files that paths, globs and URLs name, those of a glob in alphabetical order.

    Raises:
        InputError: a name that nothing has.
    """
    found: list[str] = []
    for place in places:
        if is_url(place):
            fs, path = filesystem(place)
            matches = sorted(fs.glob(path)) if has_magic(path) else [path] if fs.exists(path) else []
            found += (fs.unstrip_protocol(match) for match in matches)
        else:
            path = str(local_path(place))
            matches = [path] if Path(path).exists() or not has_magic(path) else sorted(iglob(path))  # noqa: PTH207 - absolute patterns too
            if matches and not Path(matches[0]).is_file():
                matches = []
            found += matches
        if not matches:
            raise InputError(f"{place}: there is no such file; give a file, a glob in quotes, or a URL")
    return tuple(found)


def open_binary(place: str) -> AbstractContextManager[Any]:
    """Opens one file for reading.

    Raises:
        InputError: it cannot be read; the message has the reason.
    """
    try:
        if is_url(place):
            fs, path = filesystem(place)
            return fs.open(path, "rb")
        return local_path(place).open("rb")
    except OSError as error:
        raise InputError(f"{place}: cannot be read ({error.strerror or error}); is it still there?") from error
