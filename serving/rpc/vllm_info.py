"""The server and its model in the words of the vllm.grpc.engine protocol."""

from datetime import UTC, datetime
from importlib.metadata import version

from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from ..front import Front

SERVER_TYPE = "distaff"


def model_info(front: Front) -> pb.GetModelInfoResponse:
    """The model. Files are not named: the tokenizer's come by GetTokenizer."""
    card = front.card
    return pb.GetModelInfoResponse(
        model_path=card.name,
        is_generation=True,
        max_context_length=card.context,
        vocab_size=card.vocab_size,
        supports_vision=False,
        served_model_name=front.names[0],
        model_type=card.family,
        eos_token_ids=sorted(card.eos_ids),
        bos_token_id=-1 if card.bos_id is None else card.bos_id,
        pad_token_id=-1,
        max_req_input_len=card.context - 1,
    )


def server_info(front: Front, last_request: float, uptime: float) -> pb.GetServerInfoResponse:
    """
    Args:
        last_request: when the last one came, in seconds since 1970; 0 for never.
        uptime: seconds.
    """
    return pb.GetServerInfoResponse(
        active_requests=front.load().streams,
        is_paused=False,
        last_receive_timestamp=last_request,
        uptime_seconds=uptime,
        server_type=SERVER_TYPE,
        data_parallel_size=1,
        model_dtype=front.card.dtype,
        block_size=front.metrics.page_size,
        max_num_seqs=front.load().max_batch,
    )


def loads(front: Front) -> pb.GetLoadsResponse:
    """How busy the server is."""
    load, metrics = front.load(), front.metrics
    queried = metrics.prefix_query_tokens
    entry = pb.SchedulerLoad(
        num_running_reqs=load.running,
        num_waiting_reqs=load.waiting,
        num_total_reqs=load.running + load.waiting,
        num_used_tokens=load.pages_used * metrics.page_size,
        max_total_num_tokens=load.pages_total * metrics.page_size,
        token_usage=load.page_usage,
        cache_hit_rate=metrics.prefix_hit_tokens / queried if queried else 0.0,
        utilization=min(1.0, load.running / load.max_batch) if load.max_batch else 0.0,
        max_running_requests=load.max_batch,
    )
    return pb.GetLoadsResponse(
        timestamp=datetime.now(UTC).isoformat(), version=version("distaff"), dp_rank_count=1, loads=[entry]
    )
