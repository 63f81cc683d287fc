"""What is served, as clients may know it."""

from dataclasses import dataclass

from ..capabilities import PARAMETERS, Parameter


@dataclass(frozen=True)
class ModelCard:
    """A model as it is served.

    Attributes:
        name: what clients call it.
        family: such as "llama".
        context: longest text in tokens, prompt included.
        layout: how it lies on several devices; "" is one.
        max_batch: sequences computed at once.
        weights: tells them from others: a hash of the checkpoint, and how they were rounded; "" where nobody knows.
        embeds: whether EMBED requests are served.
        has_tokenizer, has_chat_template: whether text and conversations are understood, besides token ids.
        eos_ids: tokens that end a text.
        capabilities: every sampling parameter with its domain.
    """

    name: str
    family: str
    vocab_size: int
    context: int
    dtype: str = "float32"
    backend: str = ""
    layout: str = ""
    max_batch: int = 0
    weights: str = ""
    embeds: bool = True
    has_tokenizer: bool = True
    has_chat_template: bool = False
    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    capabilities: tuple[Parameter, ...] = PARAMETERS
