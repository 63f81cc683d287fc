"""What the records of a run add up to.

| figure | meaning |
|---|---|
| TTFT | from sending a request to its first token |
| e2el | from sending a request to its last token |
| TPOT | (e2el - TTFT) / (output tokens - 1), of requests with two tokens or more |
| ITL | from one message with tokens to the next of the same request |
| late | from the moment that a request was due to the moment it was sent: the generator's own delay |
| goodput | requests that came to their end within all limits, by the duration |

The duration runs from the first sending to the last end. Times are those of requests that succeeded.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..goodput import Goodput
from ..percentiles import percentiles_ms, rate_per_s
from ..times import times_report
from .record import Record


def summary(records: Sequence[Record], *, goodput: Goodput | None = None) -> dict[str, Any]:
    """The figures of one run, as JSON knows them."""
    ended = [record for record in records if record.succeeded]
    duration = duration_of(records)
    output_tokens = sum(record.num_tokens for record in records)
    prompt_tokens = sum(record.prompt_tokens for record in records)
    value: dict[str, Any] = {
        "requests": len(records),
        "failed": len(records) - len(ended),
        "errors": dict(Counter(record.error or "no token came" for record in records if not record.succeeded)),
        "prompt_tokens": prompt_tokens,
        "cached_tokens": sum(record.cached_tokens for record in records),
        "output_tokens": output_tokens,
        "duration_s": duration,
        "requests_per_s": rate_per_s(len(ended), duration),
        "output_tokens_per_s": rate_per_s(output_tokens, duration),
        "total_tokens_per_s": rate_per_s(output_tokens + prompt_tokens, duration),
        "concurrency": {
            "mean": rate_per_s(sum(record.ended - record.sent for record in records), duration),
            "max": most_at_once(records),
        },
        **times_report(ended),
        "late_ms": percentiles_ms([record.sent - record.due for record in records]),
    }
    if goodput is not None:
        value["goodput"] = goodput.report(records, duration)
    return value


def duration_of(records: Sequence[Record]) -> float:
    """Seconds from the first sending to the last end."""
    if not records:
        return 0.0
    return max(record.ended for record in records) - min(record.sent for record in records)


def most_at_once(records: Sequence[Record]) -> int:
    """How many requests were on their way at the same time, at most."""
    # An end comes before a beginning at the same moment.
    changes = sorted([(record.sent, 1) for record in records] + [(record.ended, -1) for record in records])
    most = running = 0
    for _, change in changes:
        running += change
        most = max(most, running)
    return most
