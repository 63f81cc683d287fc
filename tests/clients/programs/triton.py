"""tritonclient against a server: unary, and a decoupled stream of several requests. Prints what it saw as JSON.

python triton.py TARGET PROMPT MAX_TOKENS
"""

import json
import queue
import sys
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2
from tritonclient import grpc as triton
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException


def tensor(name: str, value: Any, datatype: str, dtype: Any) -> triton.InferInput:
    array = np.array([value], dtype)
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def contract() -> dict[str, Any]:
    """Every field of the client's messages: its number and type."""
    fields: dict[str, list[Any]] = {}

    def walk(prefix: str, messages: Any) -> None:
        for message in messages:
            walk(f"{prefix}{message.name}.", message.nested_type)
            for field in message.field:
                kind = field.type_name or descriptor_pb2.FieldDescriptorProto.Type.Name(field.type)
                fields[f"{prefix}{message.name}.{field.name}"] = [field.number, field.label, kind]

    for module in (service_pb2, model_config_pb2):
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        walk("", file.message_type)
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    return {"fields": fields, "methods": [method.name for method in service.methods]}


def main() -> None:
    target, prompt, max_tokens = sys.argv[1], sys.argv[2].encode(), sys.argv[3]
    client = triton.InferenceServerClient(target)
    seen = {
        "live": client.is_server_live(),
        "ready": client.is_model_ready("any"),
        "decoupled": client.get_model_config("any").config.model_transaction_policy.decoupled,
        "inputs": [entry.name for entry in client.get_model_metadata("any").inputs],
        "contract": contract(),
    }
    sampling = json.dumps({"temperature": "0", "max_tokens": max_tokens}).encode()
    asked = [
        tensor("text_input", prompt, "BYTES", np.object_),
        tensor("sampling_parameters", sampling, "BYTES", np.object_),
    ]
    answer = client.infer("any", [*asked, tensor("exclude_input_in_output", True, "BOOL", bool)], request_id="7")
    seen["unary"] = {"id": answer.get_response().id, "text": answer.as_numpy("text_output")[0].decode()}

    messages = queue.Queue()
    client.start_stream(callback=lambda result, error: messages.put((result, error)))
    streamed = [*asked, tensor("stream", True, "BOOL", bool)]
    for name in ("a", "b"):
        client.async_stream_infer("any", streamed, request_id=name, enable_empty_final_response=True)
    wrong = tensor("temperature", -1.0, "FP32", np.float32)
    client.async_stream_infer("any", [asked[0], streamed[-1], wrong], request_id="wrong")
    seen["streams"], seen["errors"], open_requests = {"a": [], "b": []}, [], 3
    while open_requests:
        result, error = messages.get(timeout=120)
        if error is not None:
            seen["errors"].append(error.message())
            open_requests -= 1
            continue
        response = result.get_response()
        text = result.as_numpy("text_output")
        if text is not None:
            seen["streams"][response.id].append(text[0].decode())
        open_requests -= response.parameters["triton_final_response"].bool_param
    client.stop_stream()

    stats = client.get_inference_statistics("any").model_stats[0].inference_stats
    seen["statistics"] = {"success": stats.success.count, "fail": stats.fail.count}
    try:
        client.load_model("any")
    except InferenceServerException as error:
        seen["load"] = error.status()
    print(json.dumps(seen))


main()
