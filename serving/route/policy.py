"""Which server gets a request: the one that will probably have its first token ready first.

What a server has to compute before that, in tokens: the part of the prompt that it does not know, the prompts that wait
in front of it, and a share for each text that it is generating. A shared prefix wins as long as it saves more than the
others' shorter queues.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RUNNING_TOKENS = 16.0
"""What a running text costs a new one, in tokens: it takes a row of each step."""


@dataclass
class Standing:
    """How busy a server is.

    Attributes:
        name: the server's.
        ready: whether requests may be sent there.
        pending_tokens: of prompts that this router has sent and that had no event yet, what the server did not know.
        in_flight: requests that this router has sent and that have not ended.
        others_waiting, others_running: requests of other clients, as far as the server's last report tells.
        turn: when it was last chosen; of equals the one that waited longest is next.
        max_batch: texts that it computes at once.
    """

    name: str
    ready: bool = True
    pending_tokens: int = 0
    in_flight: int = 0
    others_waiting: int = 0
    others_running: int = 0
    turn: int = 0
    max_batch: int = 32

    def report(self, waiting: int, running: int, ours: int) -> None:
        """Enters what the server says of all its clients.

        Args:
            ours: of these requests, those that this router had sent.
        """
        others = max(0, waiting + running - ours)
        self.others_waiting = min(others, waiting)
        self.others_running = others - self.others_waiting

    def cost(self, prompt_tokens: int, known_tokens: int) -> float:
        """Tokens until the first token of a prompt that is `prompt_tokens` long, of which the server knows some. The
        prompts of others that wait there count as long as this one."""
        unknown = max(1, prompt_tokens - known_tokens)
        running = self.in_flight + self.others_running
        return unknown + self.pending_tokens + self.others_waiting * prompt_tokens + running * RUNNING_TOKENS


def ranked(standings: Sequence[Standing], prompt_tokens: int, known: Mapping[str, int]) -> list[Standing]:
    """The servers that are ready, best first."""
    ready = [standing for standing in standings if standing.ready]
    return sorted(
        ready, key=lambda standing: (standing.cost(prompt_tokens, known.get(standing.name, 0)), standing.turn)
    )
