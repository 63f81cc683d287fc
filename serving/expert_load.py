"""How evenly the experts of a mixture are chosen."""

from typing import Any

import numpy as np


class ExpertLoad:
    """Counts of layers and experts, summed over steps.

    Args:
        layers: of the model; those without experts count nothing.
        columns: experts, and one for tokens that had to wait.
    """

    def __init__(self, layers: int, columns: int) -> None:
        self._counts = np.zeros((layers, columns), np.int64)

    def add(self, load: np.ndarray) -> None:
        """Counts a step; `load` is as Ticket.expert_load has it."""
        self._counts += load

    def snapshot(self) -> dict[str, Any]:
        """`chosen` (by tokens, in all layers), `waited` (copies of tokens that found no place in the first round of a
        dispatch), `layers` (for each layer with experts, tokens of each), and how many times the mean the most chosen
        expert of a layer has: in the layer where that is most (`most_uneven`), and on average (`uneven`)."""
        with_experts = self._counts[self._counts[:, :-1].any(axis=1)]
        counts = with_experts[:, :-1]
        uneven = counts.max(axis=1) / counts.mean(axis=1) if len(counts) else np.zeros(1)
        return {
            "chosen": int(counts.sum()),
            "waited": int(with_experts[:, -1].sum()),
            "uneven": float(uneven.mean()),
            "most_uneven": float(uneven.max()),
            "layers": counts.tolist(),
        }
