"""The exposition that Prometheus scrapes."""

from collections.abc import Iterator, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from ..front import Front
from ..metrics import Histogram
from .exported import Exported
from .exports import EXPORTS

_OPENMETRICS = "application/openmetrics-text"


class FrontCollector(Collector):
    """Reads a Front when it is scraped; nothing is counted twice and nothing costs anything in between.

    Args:
        front: what is looked at.
    """

    def __init__(self, front: Front) -> None:
        self._front = front

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        for exported in EXPORTS:
            yield _family(exported, self._front)


class Exposition:
    """A registry of its own for one Front: servers in one process, tests above all, do not see each other.

    Args:
        front: what is looked at.
        process: whether to add the process's memory, CPU seconds and file descriptors.
    """

    def __init__(self, front: Front, *, process: bool = True) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(FrontCollector(front))
        if process:
            ProcessCollector(registry=self._registry)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The text and its content type, in the format that an Accept header asks for."""
        encode, content_type = choose_encoder(accept)
        if content_type.startswith(_OPENMETRICS):
            # Where a client takes no UTF-8, this encoder writes vllm_ for vllm:, although colons are allowed. No name
            # here needs any escape, so that what it writes without is right for everybody.
            encode = partial(openmetrics.generate_latest, escaping=openmetrics.ALLOWUTF8, version="1.0.0")
        return encode(self._registry), content_type


def _family(exported: Exported, front: Front) -> Metric:
    constant = dict(exported.constant(front)) if exported.constant is not None else {}
    names = [*constant, *exported.labels]
    found = exported.read(front)
    values = dict(found) if isinstance(found, Mapping) else {(): found}
    if exported.kind == "histogram":
        family = HistogramMetricFamily(exported.name, exported.doc, labels=names)
        for labels, histogram in values.items():
            assert isinstance(histogram, Histogram)
            family.add_metric([*constant.values(), *labels], _buckets(histogram, exported.bounds), histogram.total)
        return family
    kind = CounterMetricFamily if exported.kind == "counter" else GaugeMetricFamily
    family = kind(exported.name, exported.doc, labels=names)
    for labels, value in values.items():
        assert not isinstance(value, Histogram)
        family.add_metric([*constant.values(), *labels], value)
    return family


def _buckets(histogram: Histogram, bounds: tuple[float, ...]) -> list[tuple[str, float]]:
    names = [*(f"{bound:g}" if bound != int(bound) else f"{bound:.1f}" for bound in bounds), "+Inf"]
    return [(name, float(count)) for name, count in zip(names, histogram.below(bounds), strict=True)]
