"""Most bytes of this process's own memory while SmolLM2 is rounded as it is loaded, above what it had before, and those
of its weights in bfloat16 and rounded: `python -m tests.models.compress.quantise_peak SCHEME` prints them."""

import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from distaff.models.checkpoints import open_checkpoint, resolve_model
from distaff.models.compress import rounded_as
from distaff.models.decoder import weight_specs
from distaff.models.families import config_from_hf


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise AssertionError("no RssAnon in /proc/self/status")


def main(scheme: str) -> None:
    checkpoint = open_checkpoint(resolve_model("smollm2-135m-instruct", offline=True))
    config = config_from_hf(checkpoint.hf_config, source="smollm2")
    form = rounded_as(scheme, config)
    jax.block_until_ready(jnp.ones(8) + 1)
    before, most, done = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, anonymous())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    weights = form.load(checkpoint, dtype=jnp.dtype("bfloat16")).weights
    done.set()
    watcher.join()
    whole = sum(2 * jnp.prod(jnp.asarray(spec.shape)).item() for spec in weight_specs(config, jnp.bfloat16).values())
    rounded = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
    print(most - before, whole, rounded)


if __name__ == "__main__":
    main(sys.argv[1])
