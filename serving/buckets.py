"""Which program shapes an engine compiles: few, and each close to what steps really hold."""

from collections.abc import Sequence

from .plan import Bucket

_MIN_MIXED = 64
_MIXED_RATIO = 4
_PROMPT_TOKENS = 128


def plan_buckets(
    sizes: Sequence[int], *, max_batch: int, max_step_tokens: int, one_size: bool = False
) -> tuple[Bucket, ...]:
    """The buckets, smallest first.

    Decode buckets follow the backend's sizes up to max_batch rows. Mixed ones, in which prompts are read, are far
    apart: a chunk can be cut to fill them. Prompt buckets hold few tokens, since each of them needs its logits.

    Args:
        sizes: token counts that suit the backend, ascending.
        one_size: every step runs in one shape, so that any backend computes a row in one and the same way.
    """
    largest = max(max_step_tokens, max_batch)
    if one_size:
        tokens = max(max_batch, min(_PROMPT_TOKENS, max_step_tokens))
        return Bucket(tokens, max_batch, "mixed"), Bucket(tokens, max_batch, "prompt")
    decode = [size for size in sizes if size < max_batch] + [max_batch]
    mixed = [largest]
    while mixed[-1] // _MIXED_RATIO >= max(_MIN_MIXED, max_batch):
        mixed.append(mixed[-1] // _MIXED_RATIO)
    prompt = min(largest, max(_PROMPT_TOKENS, max_batch))
    return (
        *(Bucket(size, size, "decode") for size in decode),
        *(Bucket(size, min(size, max_batch), "mixed") for size in reversed(mixed)),
        Bucket(prompt, min(prompt, max_batch), "prompt"),
    )
