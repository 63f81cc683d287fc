"""A model that is loaded, as far as batch jobs need it."""

from typing import Any, Protocol, runtime_checkable

from ...models.checkpoints import Location
from ...models.config import ModelConfig
from ...models.tokenizer import Tokenizer


@runtime_checkable
class Loaded(Protocol):
    """LLM is one.

    Attributes:
        engine: an Engine, or what is used as one.
        tokenizer: None where only token ids are understood.
        path: of the checkpoint.
        backend: what it runs on.
    """

    @property
    def engine(self) -> Any: ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    @property
    def path(self) -> Location: ...

    @property
    def config(self) -> ModelConfig: ...

    @property
    def backend(self) -> Any: ...
