"""The tokenizer's files as one archive, for gateways that tokenise themselves."""

import asyncio
import hashlib
import io
import tempfile
import zipfile
from pathlib import Path

from ...backends.errors import UnsupportedError
from ...models.tokenizer import Tokenizer

CHUNK_BYTES = 64 * 1024
_DATE = (1980, 1, 1, 0, 0, 0)  # of every file, so that one tokenizer has one digest


class TokenizerArchive:
    """Made when it is first asked for, and kept.

    Args:
        tokenizer: None where the model has none.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._made: tuple[bytes, str] | None = None
        self._lock = asyncio.Lock()

    async def read(self) -> tuple[bytes, str]:
        """The archive and its SHA-256 in hexadecimal digits.

        Raises:
            UnsupportedError: there is no tokenizer.
        """
        if self._tokenizer is None:
            raise UnsupportedError("this model has no tokenizer: send token ids")
        async with self._lock:
            if self._made is None:
                self._made = await asyncio.to_thread(archive, self._tokenizer)
        return self._made


def archive(tokenizer: Tokenizer) -> tuple[bytes, str]:
    """A zip archive as transformers reads the files in it, and its SHA-256."""
    target = io.BytesIO()
    with tempfile.TemporaryDirectory(prefix="distaff-tokenizer-") as name:
        folder = Path(name)
        tokenizer.save(folder)
        with zipfile.ZipFile(target, "w") as file:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    entry = zipfile.ZipInfo(str(path.relative_to(folder)), _DATE)
                    file.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    data = target.getvalue()
    return data, hashlib.sha256(data).hexdigest()
