"""Joins the outputs of shards into one, in the order of the input."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from .cost import Price, cost_of, price_of
from .errors import InputError, JobExistsError, JobMismatchError, OutputError
from .job import Job, Store, open_store
from .shard import Shard
from .source import filesystem, is_url, local_path


def merge_shards(output: str, store: Store, *, overwrite: bool = False, price: Price | None = None) -> dict[str, Any]:
    """Joins all shards of an output; they stay where they are.

    Args:
        price: of the chips, instead of that of the shards.

    Returns:
        The manifest of the whole.

    Raises:
        InputError: there are none, or one is missing or not complete.
        JobExistsError: the output is there, and may not be replaced.
        JobMismatchError: the shards are of different jobs.
        JobLockedError: another process writes the output.
        OutputError: it cannot be written.
    """
    if not overwrite:
        _refuse(store.found())
    parts = _parts_of(output, price)
    try:
        journal = store.open_journal(lambda record: None)  # nobody else publishes there meanwhile
        try:
            if not overwrite:
                _refuse(store.found_results())
            store.publish(parts.good, parts.bad, parts.manifest)
            journal.remove()
        finally:
            journal.close()
    except OSError as error:
        raise OutputError(f"{store}: cannot be written ({error.strerror or error})") from error
    return parts.manifest


def publish_shards(job: Job, output: str) -> dict[str, Any]:
    """Joins all shards of a job that this process holds, and deletes them; raises as `merge_shards`."""
    parts = _parts_of(output)
    manifest = {**parts.manifest, "job": job.journal.index.header}
    try:
        job.publish_rows(parts.good, parts.bad, manifest)
        for shard in shards_of(output):
            open_store(shard.name(output)).forget_results()
    except OSError as error:
        raise OutputError(f"{output}: cannot be written ({error.strerror or error})") from error
    return manifest


class _Parts(NamedTuple):
    """The rows of all shards, and one manifest of them."""

    good: Iterator[bytes]
    bad: Iterator[bytes]
    manifest: dict[str, Any]


def _parts_of(output: str, price: Price | None = None) -> _Parts:
    shards = shards_of(output)
    if not shards:
        raise InputError(f"{output}: expected the parts of one job beside it ({output}.shard-...), found none")
    stores = [open_store(shard.name(output)) for shard in shards]
    manifests = [each.read_manifest() for each in stores]
    missing = [str(each) for each, manifest in zip(stores, manifests, strict=True) if manifest is None]
    if missing:
        raise InputError(
            f"{missing[0]} is not complete ({len(missing)} of {len(stores)} are not): run it with --resume"
        )
    whole = joined([manifest for manifest in manifests if manifest is not None], output, price)
    rows = [each.read_rows() for each in stores]
    good, bad = (chain.from_iterable(each) for each in zip(*rows, strict=True))
    return _Parts(good, bad, whole)


def joined(manifests: Sequence[Mapping[str, Any]], output: str, price: Price | None = None) -> dict[str, Any]:
    """One manifest of several, in order.

    Raises:
        JobMismatchError: they are of different inputs, models or settings.
    """
    errors: Counter[str] = Counter()
    for manifest in manifests:
        errors.update(manifest["errors"])
        for name in {*manifest["job"], *manifests[0]["job"]} - {"shard", "now"}:
            first, other = manifests[0]["job"].get(name), manifest["job"].get(name)
            if first != other:
                raise JobMismatchError(f"{output}: its parts are of different jobs: {name} is {first!r} and {other!r}")
    models = [run["model"] for manifest in manifests for run in manifest["runs"]]
    if any(model != models[0] for model in models):
        raise JobMismatchError(f"{output}: its parts were answered by different models")

    def summed(part: str) -> dict[str, int]:
        return {name: sum(each[part][name] for each in manifests) for name in manifests[0][part]}

    whole = {
        **manifests[0],
        "job": {**manifests[0]["job"], "shard": [0, 1]},
        "request_counts": summed("request_counts"),
        "errors": dict(sorted(errors.items())),
        "usage": summed("usage"),
        "seconds": round(sum(each["seconds"] for each in manifests), 3),
        "runs": [run for each in manifests for run in each["runs"]],
    }
    return {**whole, "cost": cost_of(whole, price or price_of(whole))}


def shards_of(output: str) -> list[Shard]:
    """Every shard that there must be, by the names of those that there are.

    Raises:
        InputError: they are of jobs that were cut differently.
    """
    if is_url(output):
        fs, path = filesystem(output)
        fs.invalidate_cache()
        names = [str(each) for each in fs.glob(f"{path}.shard-*")]
    else:
        path = local_path(output)
        names = [str(each) for each in path.parent.glob(f"{path.name}.shard-*")]
    found = (re.search(r"\.shard-\d{5}-of-(\d{5})[^/]*$", name) for name in names)
    counts = sorted({int(each[1]) for each in found if each is not None})
    if len(counts) > 1:
        raise InputError(
            f"{output}: the parts beside it are of {' and of '.join(map(str, counts))}: delete the wrong ones"
        )
    return [Shard(index, counts[0]) for index in range(counts[0])] if counts else []


def _refuse(there: Sequence[str]) -> None:
    if there:
        raise JobExistsError(f"{', '.join(there)} exists already; --overwrite replaces it")
