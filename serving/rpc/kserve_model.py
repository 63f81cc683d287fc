"""The model in the words of the KServe protocol: its metadata, its configuration, and how its requests fared."""

import time

from ..front import ModelCard
from ..results import Timings
from .kserve_request import VERSION
from .kserve_tensors import DATATYPES, INPUTS, OUTPUTS
from .protos.kserve import inference_pb2 as pb

PLATFORM = "distaff"


def metadata(name: str) -> pb.ModelMetadataResponse:
    """What goes in and comes out."""
    kinds = [
        [pb.ModelMetadataResponse.TensorMetadata(name=t.name, datatype=t.datatype, shape=t.dims) for t in tensors]
        for tensors in (INPUTS.values(), OUTPUTS.values())
    ]
    return pb.ModelMetadataResponse(name=name, versions=[VERSION], platform=PLATFORM, inputs=kinds[0], outputs=kinds[1])


def configuration(name: str, card: ModelCard) -> pb.ModelConfig:
    """The same as a configuration. Requests are batched by the engine, so each has a batch size of 0: none."""
    facts = {"family": card.family, "dtype": card.dtype, "backend": card.backend, "context": str(card.context)}
    return pb.ModelConfig(
        name=name,
        platform=PLATFORM,
        backend=PLATFORM,
        max_batch_size=0,
        input=[
            pb.ModelInput(
                name=tensor.name,
                data_type=DATATYPES[tensor.datatype].config,
                dims=tensor.dims,
                optional=True,  # text_input or input_ids: one of them
            )
            for tensor in INPUTS.values()
        ],
        output=[
            pb.ModelOutput(name=tensor.name, data_type=DATATYPES[tensor.datatype].config, dims=tensor.dims)
            for tensor in OUTPUTS.values()
        ],
        parameters={key: pb.ModelParameter(string_value=value) for key, value in facts.items()},
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=True),
    )


class Statistics:
    """Counts the requests that came through this protocol."""

    def __init__(self) -> None:
        self._stats = pb.InferStatistics()
        self._last = 0.0

    def succeeded(self, timings: Timings, opened: float, seconds: float) -> None:
        """A request was answered. Its parts fill the whole time: input is to read and tokenise it, infer from its first
        step to its last token, output the rest: what was still to be written then.

        Args:
            timings: of the engine, which had it from `opened` on.
            opened: seconds after it came.
            seconds: until its end.
        """
        self._last = time.time()
        infer = timings.ttft - timings.queue + timings.decode
        _add(self._stats.success, seconds)
        _add(self._stats.queue, timings.queue)
        _add(self._stats.compute_input, opened)
        _add(self._stats.compute_infer, infer)
        _add(self._stats.compute_output, seconds - opened - timings.queue - infer)

    def failed(self, seconds: float) -> None:
        """A request was refused, failed, or was given up."""
        _add(self._stats.fail, seconds)

    def message(self, name: str) -> pb.ModelStatistics:
        """As clients read them."""
        stats, count = self._stats, self._stats.success.count
        batch = pb.InferBatchStatistics(
            batch_size=1,
            compute_input=stats.compute_input,
            compute_infer=stats.compute_infer,
            compute_output=stats.compute_output,
        )
        return pb.ModelStatistics(
            name=name,
            version=VERSION,
            last_inference=int(self._last * 1000),
            inference_count=count,
            execution_count=count,
            inference_stats=stats,
            batch_stats=[batch] if count else [],
        )


def _add(duration: pb.StatisticDuration, seconds: float) -> None:
    duration.count += 1
    duration.ns += max(0, round(seconds * 1e9))
