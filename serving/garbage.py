"""Python's garbage collections, where JAX is loaded."""

import gc


def settle_memory() -> None:
    """Leaves what was made so far out of garbage collections: going through all of JAX again and again would cost a
    fifth of the time of a token. To be called once everything is loaded and compiled."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
