"""Which layers each stage of a pipeline has: equal parts of one segment, the last one shorter where it has to be.

The segment of most layers is cut into runs of its repeating block. What stands before it runs on the first stage and
what stands behind it on the last; these few layers are held by all stages, so that weights and caches have one shape
everywhere.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Array, Bool, Int

from ..models.config import CacheSite, ModelConfig
from ..models.placement import Held


@dataclass(frozen=True)
class Stages:
    """
    Args:
        config: the model's.
        count: stages.
    """

    config: ModelConfig
    count: int

    @cached_property
    def cut(self) -> int:
        """The number of the segment that is cut."""
        segments = self.config.segments
        return max(range(len(segments)), key=lambda n: segments[n].repeats * len(segments[n].block))

    def repeats(self, number: int) -> int:
        """Of a segment's block, how many a stage holds."""
        repeats = self.config.segments[number].repeats
        return -(-repeats // self.count) if number == self.cut else repeats

    @cached_property
    def layers_held(self) -> tuple[int, ...]:
        """Of each cache group, how many layers a stage holds."""
        held: Counter[int] = Counter()
        for number, sites in enumerate(self.config.cache_sites):
            for site in sites:
                held[site.group] += self.repeats(number)
        return tuple(held[group] for group in range(len(self.config.cache_groups)))

    @cached_property
    def loads(self) -> tuple[int, ...]:
        """Layers that each stage computes."""
        segments, here = self.config.segments, self.repeats(self.cut)
        cut = segments[self.cut]
        blocks = [min(max(cut.repeats - stage * here, 0), here) for stage in range(self.count)]
        loads = [number * len(cut.block) for number in blocks]
        for number, segment in enumerate(segments):
            if number != self.cut:
                loads[0 if number < self.cut else -1] += segment.repeats * len(segment.block)
        return tuple(loads)

    @property
    def even(self) -> bool:
        """Whether every stage computes all that it holds."""
        return len(self.config.segments) == 1 and self.config.segments[0].repeats % self.count == 0

    def held(self, number: int, stage: Int[Array, ""]) -> Held:
        """What a stage has of a segment."""
        here, repeats = self.repeats(number), self.config.segments[number].repeats
        active: Callable[[Int[Array, ""]], Bool[Array, ""]] | None = None
        if not self.even:
            if number == self.cut:
                active = lambda repeat: stage * here + repeat < repeats  # noqa: E731
            else:
                active = lambda _: stage == (0 if number < self.cut else self.count - 1)  # noqa: E731
        return Held(here, self._sites[number], active)

    @cached_property
    def _sites(self) -> tuple[tuple[CacheSite, ...], ...]:
        """As config.cache_sites, in a stage's own cache."""
        filled: Counter[int] = Counter()
        found: list[tuple[CacheSite, ...]] = []
        for number, sites in enumerate(self.config.cache_sites):
            first = {
                group: min(site.first for site in sites if site.group == group) for group in {s.group for s in sites}
            }
            found.append(tuple(CacheSite(s.group, filled[s.group] + s.first - first[s.group], s.stride) for s in sites))
            for site in sites:
                filled[site.group] += self.repeats(number)
        return tuple(found)
