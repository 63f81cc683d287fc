"""A request of the vllm.grpc.engine protocol as a Call.

Every field of GenerateRequest and SamplingParams is honoured, stands in `WITHOUT_EFFECT` with the reason, or is refused
for the reason in `REFUSED`; tests/serving/rpc/test_vllm_request.py walks the descriptors.
"""

from collections.abc import Mapping
from types import MappingProxyType

from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from ...backends.errors import InvalidParameterError
from ..front import Call
from ..sampling_params import SamplingParams, unsigned_seed
from ..types import Kind
from .compatible import refuse

_NO_CONSTRAINT = "structured output is not supported"
_NO_MEDIA = "the model takes text alone"
_NO_TRANSFER = "KV caches are not handed over between servers"

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "json_schema": _NO_CONSTRAINT,
        "regex": _NO_CONSTRAINT,
        "grammar": _NO_CONSTRAINT,
        "structural_tag": _NO_CONSTRAINT,
        "json_object": _NO_CONSTRAINT,
        "choice": _NO_CONSTRAINT,
        "grammar_from_first_token": _NO_CONSTRAINT,
        "mm_inputs": _NO_MEDIA,
        "extra_mm_inputs": _NO_MEDIA,
        "media_refs": _NO_MEDIA,
        "kv_transfer_params": _NO_TRANSFER,
        "kv_transfer_params_json": _NO_TRANSFER,
    }
)
WITHOUT_EFFECT: Mapping[str, str] = MappingProxyType(
    {
        "original_text": "it comes beside the tokens for reference",
        "skip_special_tokens": "it shapes text, and this protocol answers with tokens alone",
        "spaces_between_special_tokens": "it shapes text, and this protocol answers with tokens alone",
        "include_stop_str_in_output": "it shapes text; the tokens that spell a stop text are always among the answer's",
    }
)


def generate_call(request: pb.GenerateRequest) -> Call:
    """
    Raises:
        DistaffError: it names the field that cannot be honoured.
    """
    refuse(request, REFUSED)
    if request.HasField("data_parallel_rank") and request.data_parallel_rank != 0:
        expected = "0: the server spreads requests over its replicas itself"
        raise InvalidParameterError("data_parallel_rank", request.data_parallel_rank, expected)
    match request.WhichOneof("input"):
        case "text":
            prompt = request.text
        case "tokenized":
            prompt = tuple(request.tokenized.input_ids)
        case _:
            raise InvalidParameterError("input", None, "text or tokenized")
    return Call(prompt, sampling_params(request.sampling_params), id=request.request_id)


def embed_call(request: pb.EmbedRequest) -> Call:
    """
    Raises:
        InvalidParameterError: there are no tokens.
    """
    if not request.HasField("tokenized"):
        raise InvalidParameterError("tokenized", None, "the token ids to embed")
    return Call(tuple(request.tokenized.input_ids), kind=Kind.EMBED, id=request.request_id)


def sampling_params(given: pb.SamplingParams) -> SamplingParams:
    """The same parameters in our words. Fields without presence mean "not given" when they are 0.

    Raises:
        DistaffError: it names the field that cannot be honoured.
    """
    refuse(given, REFUSED, "sampling_params.")
    return SamplingParams(
        temperature=given.temperature if given.HasField("temperature") else 1.0,
        top_p=given.top_p or 1.0,
        top_k=given.top_k,
        min_p=given.min_p,
        frequency_penalty=given.frequency_penalty,
        presence_penalty=given.presence_penalty,
        repetition_penalty=given.repetition_penalty or 1.0,
        max_tokens=given.max_tokens if given.HasField("max_tokens") else None,
        min_tokens=given.min_tokens,
        stop=tuple(given.stop),
        stop_token_ids=tuple(given.stop_token_ids),
        ignore_eos=given.ignore_eos,
        n=given.n or 1,
        logprobs=given.logprobs if given.HasField("logprobs") else None,
        prompt_logprobs=given.prompt_logprobs if given.HasField("prompt_logprobs") else None,
        seed=unsigned_seed(given.seed) if given.HasField("seed") else None,
        logit_bias=dict(given.logit_bias) or None,
    )


def num_kept(given: pb.SamplingParams, context: int) -> int | None:
    """How many tokens at the end of the prompt `truncate_prompt_tokens` keeps; None for all.

    Args:
        context: longest text in tokens; -1 keeps what leaves room for one token in it.

    Raises:
        InvalidParameterError: it is neither -1 nor a count.
    """
    if not given.HasField("truncate_prompt_tokens"):
        return None
    count = given.truncate_prompt_tokens
    if count == -1:
        return context - 1
    if count < 1:
        raise InvalidParameterError("sampling_params.truncate_prompt_tokens", count, "-1 or at least 1")
    return count
