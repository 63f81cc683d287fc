"""The programs of several replicas: one call admits, copies and steps for all of them."""

from collections.abc import Sequence as Row
from typing import Any

import jax
import numpy as np

from ..models.row_state import RowState, SamplingRows
from ..models.step import StepBatch, StepOutput
from .plan import Bucket
from .programs import MAX_ADMITTED, MAX_COPIED, Programs
from .replica_device import Admitted, Copies


class ReplicatedPrograms(Programs):
    """Programs whose arrays hold those of each replica behind each other, so that each takes its part."""

    def admit_all(self, admitted: Row[Admitted]) -> None:
        """Uploads rows that begin to run, of each replica those of its own slots."""
        some = next(rows[0] for _, _, rows in admitted if rows)
        for first in range(0, max(len(slots) for slots, _, _ in admitted), MAX_ADMITTED):
            part = slice(first, first + MAX_ADMITTED)
            where = np.full((self.replicas, MAX_ADMITTED), self.num_slots, np.int32)
            texts = np.zeros((self.replicas, MAX_ADMITTED, self.max_len), np.int32)
            padded: list[dict[str, np.ndarray]] = []
            for number, (slots, histories, rows) in enumerate(admitted):
                where[number, : len(slots[part])] = slots[part]
                for text, history in zip(texts[number], histories[part], strict=False):
                    text[: len(history)] = history
                padded += rows[part] + [some] * (MAX_ADMITTED - len(rows[part]))
            new: Any = (texts.reshape(-1, self.max_len), SamplingRows.stack(padded))
            self._state = self._program("admit")(self._state, where.reshape(-1), RowState(*new))

    def copy_all(self, copies: Row[Copies]) -> None:
        """Copies pages (source, target) of each group, of each replica its own."""
        for first in range(0, max(len(pairs) for each in copies for pairs in each), MAX_COPIED):
            shape = len(self.num_pages), self.replicas, MAX_COPIED
            sources, targets = np.zeros(shape, np.int32), np.empty(shape, np.int32)
            targets[:] = np.asarray(self.num_pages, np.int32)[:, None, None]
            for number, of_groups in enumerate(copies):
                for group, pairs in enumerate(of_groups):
                    for i, pair in enumerate(pairs[first : first + MAX_COPIED]):
                        sources[group, number, i], targets[group, number, i] = pair
            flat = [tuple(ids.reshape(len(self.num_pages), -1)) for ids in (sources, targets)]
            self._cache = self._program("copy")(self._cache, *flat)

    def step_all(self, bucket: Bucket, batches: Row[StepBatch]) -> StepOutput:
        """Dispatches a step of all replicas."""
        return self.step(
            bucket, jax.tree.map(lambda *leaves: np.concatenate(list(map(np.atleast_1d, leaves))), *batches)
        )
