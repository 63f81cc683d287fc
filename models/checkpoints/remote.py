"""Files and folders that fsspec reaches, such as gs://bucket/model, in the manner of pathlib."""

import posixpath
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from ...backends.errors import UsageError
from ..errors import CheckpointError

_URL: Final = re.compile(r"([a-z][a-z0-9+.-]+)://(.+)")


class MissingFilesystemError(UsageError):
    """A URL whose filesystem is not installed."""


def is_url(text: str) -> bool:
    """Whether a text names something that fsspec is asked for."""
    return _URL.fullmatch(text) is not None


@dataclass(frozen=True)
class RemoteStat:
    """What is known of a file without reading it."""

    st_size: int


class RemotePath:
    """A file or folder behind a URL. Has those of pathlib.Path's operations that reading a checkpoint needs.

    Raises:
        MissingFilesystemError: fsspec, or what it needs for this kind of URL, is not installed.
    """

    def __init__(self, url: str, *, root: "RemotePath | None" = None) -> None:
        self._url = url.rstrip("/")
        self._root = root

    @cached_property
    def _filesystem(self) -> Any:
        if self._root is not None:
            return self._root._filesystem
        scheme = self._url.partition("://")[0]
        try:
            return import_module("fsspec").filesystem(scheme)
        except ImportError as error:
            raise MissingFilesystemError(
                f"{self._url}: {scheme}:// needs a package that is not installed ({error}); install "
                "distaff[remote], for gs:// gcsfs and for s3:// s3fs, or copy the files to this machine"
            ) from error
        except ValueError as error:
            raise MissingFilesystemError(
                f"{self._url}: found the unknown scheme {scheme}:// ({error}), expected one that fsspec knows, such as "
                "gs:// or s3://"
            ) from error

    @cached_property
    def _inner(self) -> str:
        return str(self._filesystem._strip_protocol(self._url))

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except UsageError:
            raise
        except Exception as error:  # whatever a filesystem and the network under it raise
            raise CheckpointError(
                f"{self._url}: {doing} failed ({type(error).__name__}: {str(error)[:200]}); check the address, the "
                "network and your credentials"
            ) from error

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self._url}/{name}", root=self._root or self)

    def __str__(self) -> str:
        return self._url

    def __repr__(self) -> str:
        return f"RemotePath({self._url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and other._url == self._url

    def __lt__(self, other: "RemotePath") -> bool:
        return self._url < other._url

    def __hash__(self) -> int:
        return hash(self._url)

    @property
    def name(self) -> str:
        return posixpath.basename(self._url)

    @property
    def suffix(self) -> str:
        return posixpath.splitext(self.name)[1]

    def with_name(self, name: str) -> "RemotePath":
        return RemotePath(f"{self._url.rpartition('/')[0]}/{name}", root=self._root or self)

    def exists(self) -> bool:
        with self._explained("looking for it"):
            return bool(self._filesystem.exists(self._inner))

    def is_file(self) -> bool:
        with self._explained("looking for it"):
            return bool(self._filesystem.isfile(self._inner))

    def stat(self) -> RemoteStat:
        with self._explained("asking for its size"):
            return RemoteStat(int(self._filesystem.size(self._inner)))

    def iterdir(self) -> Iterator["RemotePath"]:
        with self._explained("listing it"):
            names = sorted(posixpath.basename(found.rstrip("/")) for found in self._filesystem.ls(self._inner, False))
        yield from (self / name for name in names)

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """Entries of the folder itself."""
        yield from (entry for entry in self.iterdir() if fnmatchcase(entry.name, pattern))

    def read_bytes(self) -> bytes:
        with self._explained("reading it"):
            return bytes(self._filesystem.cat_file(self._inner))

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of each range (start, stop), fetched at the same time where the filesystem can."""
        with self._explained("reading a range of it"):
            starts, stops = [start for start, _ in ranges], [stop for _, stop in ranges]
            return list(self._filesystem.cat_ranges([self._inner] * len(ranges), starts, stops, on_error="raise"))

    def open(self, mode: str = "rb") -> BytesIO:
        """The first 64 KiB, as a file: enough to tell formats apart."""
        assert mode == "rb"
        with self._explained("reading it"):
            return BytesIO(self._filesystem.cat_file(self._inner, 0, 2**16))


@contextmanager
def local_copy(folder: Path | RemotePath, names: Sequence[str]) -> Iterator[Path]:
    """A folder of this machine with those of some small files that there are; the folder itself if it is local."""
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="distaff-") as scratch:
        there = {entry.name for entry in folder.iterdir()}
        for name in names:
            if name in there:
                (Path(scratch) / name).write_bytes((folder / name).read_bytes())
        yield Path(scratch)
