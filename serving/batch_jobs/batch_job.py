"""A job of a server, as its owner sees it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_ENDED = frozenset(("completed", "failed", "cancelled"))


@dataclass(frozen=True)
class BatchJob:
    """A job as its owner sees it.

    Attributes:
        status: validating, in_progress, finalizing, completed, failed, cancelling or cancelled, as OpenAI has them.
        total, completed, failed: lines.
        error: why it failed.
    """

    id: str
    input_file_id: str
    endpoint: str
    created_at: int
    status: str = "validating"
    completion_window: str = "24h"
    metadata: Mapping[str, str] = field(default_factory=dict)
    tenant: str = ""
    total: int = 0
    completed: int = 0
    failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    ended_at: int | None = None
    error: str | None = None

    @property
    def ended(self) -> bool:
        return self.status in _ENDED

    def to_dict(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        at = {f"{status}_at": self.ended_at if self.status == status else None for status in sorted(_ENDED)}
        errors = None
        if self.error is not None:
            errors = {
                "object": "list",
                "data": [{"code": "failed", "message": self.error, "line": None, "param": None}],
            }
        counts = {"total": self.total, "completed": self.completed, "failed": self.failed}
        return {
            "id": self.id, "object": "batch", "endpoint": self.endpoint, "errors": errors,
            "input_file_id": self.input_file_id, "completion_window": self.completion_window, "status": self.status,
            "output_file_id": self.output_file_id, "error_file_id": self.error_file_id, "created_at": self.created_at,
            "in_progress_at": self.in_progress_at, "expires_at": None, **at, "request_counts": counts,
            "metadata": dict(self.metadata) or None,
        }  # fmt: skip
