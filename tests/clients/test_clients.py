"""Clients that others wrote, against `distaff serve` with SmolLM2: each gets the tokens of the golden file, which
transformers computed."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from distaff.models.checkpoints import open_checkpoint
from distaff.models.tokenizer import Tokenizer
from distaff.serving.rpc.protos.kserve import inference_pb2

from .conftest import PROGRAMS, ROOT, Clients, Server

pytestmark = pytest.mark.slow

GOLDEN = json.loads((ROOT / "tests" / "golden" / "smollm2_instruct.json").read_text())["rows"]
ROW = next(row for row in GOLDEN if "prompt" in row)
CHAT = next(row for row in GOLDEN if "messages" in row)
COUNT = 16
"""Tokens compared: at none of them are the oracle's two best logits closer than 0.02."""
assert min(ROW["gaps"][:COUNT] + CHAT["gaps"][:COUNT]) > 0.02
TOKENS = ROW["token_ids"][:COUNT]


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    return open_checkpoint(smollm2).tokenizer()


@pytest.fixture(scope="module")
def text(tokenizer: Tokenizer) -> str:
    """What the golden tokens spell."""
    return tokenizer.decode(TOKENS)


def test_grpcurl_lists_and_calls_by_reflection(clients: Clients, server: Server) -> None:
    grpcurl = [clients.path("grpcurl"), "-plaintext"]
    listed = subprocess.run([*grpcurl, server.target, "list"], capture_output=True, text=True, check=True)
    for service in (
        "vllm.grpc.engine.VllmEngine",
        "inference.GRPCInferenceService",
        "jetstream_proto.Orchestrator",
        "distaff.v1.Inference",
        "grpc.health.v1.Health",
    ):
        assert service in listed.stdout.split()
    sampling = {"temperature": 0, "max_tokens": COUNT}
    request = json.dumps({"text": ROW["prompt"], "sampling_params": sampling})
    command = [*grpcurl, "-d", request, server.target, "vllm.grpc.engine.VllmEngine/Generate"]
    called = subprocess.run(command, capture_output=True, text=True, check=True)
    complete = json.loads(called.stdout)["complete"]
    assert complete["output_ids"] == TOKENS and complete["prompt_tokens"] == len(ROW["prompt_token_ids"])


def test_tritonclient_unary_and_decoupled(clients: Clients, server: Server, text: str) -> None:
    seen = clients.program("triton.py", server.target, ROW["prompt"], str(COUNT))
    assert seen["live"] and seen["ready"] and seen["decoupled"] and "text_input" in seen["inputs"]
    assert seen["unary"] == {"id": "7", "text": text}
    for texts in seen["streams"].values():
        assert len(texts) > 1 and "".join(texts) == text
    (error,) = seen["errors"]
    assert "temperature" in error
    assert seen["statistics"]["success"] >= 3 and seen["statistics"]["fail"] >= 1
    assert seen["load"] == "StatusCode.UNIMPLEMENTED"
    check_contract(seen["contract"])


def check_contract(theirs: dict[str, Any]) -> None:
    """Our .proto says of every field and method what the client's does; of the configuration it has a part."""
    file = descriptor_pb2.FileDescriptorProto()
    inference_pb2.DESCRIPTOR.CopyToProto(file)
    ours: dict[str, list[Any]] = {}

    def walk(prefix: str, messages: Any) -> None:
        for message in messages:
            walk(f"{prefix}{message.name}.", message.nested_type)
            for field in message.field:
                kind = field.type_name or descriptor_pb2.FieldDescriptorProto.Type.Name(field.type)
                ours[f"{prefix}{message.name}.{field.name}"] = [field.number, field.label, kind]

    walk("", file.message_type)
    assert {name: theirs["fields"][name] for name in ours} == ours
    parts = ("ModelConfig.", "ModelInput.", "ModelOutput.")
    missing = {name for name in theirs["fields"] if name not in ours and not name.startswith(parts)}
    answered = {name.split(".")[0] for name in ours}
    assert not {name for name in missing if name.split(".")[0] in answered}
    service = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert {method.name for method in service.methods} == set(theirs["methods"])


def test_openai_and_anthropic_through_a_gateway(
    clients: Clients, gateway: str, text: str, tokenizer: Tokenizer
) -> None:
    """The gateway applies the chat template, tokenises and spells with the tokenizer that our server hands it."""
    (message,) = CHAT["messages"]
    seen = clients.program("gateway.py", gateway, message["content"], ROW["prompt"], str(COUNT))
    expected = tokenizer.decode(CHAT["token_ids"][:COUNT])
    usage = {"prompt_tokens": len(CHAT["prompt_token_ids"]), "completion_tokens": COUNT}
    for kind in ("chat", "stream"):
        assert seen[kind]["text"] == expected
        assert {name: seen[kind]["usage"][name] for name in usage} == usage
    assert seen["stream"]["messages"] > 1
    assert seen["completion"] == {"text": text, "reason": "length"}
    assert seen["anthropic"] == expected
    assert "structured output is not supported" in seen["refused"]


def test_jetstreams_own_stubs(clients: Clients, server: Server) -> None:
    seen = clients.program("decode.py", server.target, str(COUNT), *map(str, ROW["prompt_token_ids"]))
    assert seen["live"] and len(seen["messages"]) > 1
    assert [token for message in seen["messages"] for token in message] == TOKENS


def test_node(clients: Clients, node_modules: Path, server: Server, text: str) -> None:
    protos = ROOT / "serving" / "rpc" / "protos"
    program = shutil.copy(PROGRAMS / "decode.js", node_modules.parent)
    seen = clients.run("node", str(program), str(protos), server.target, ROW["prompt"], str(COUNT))
    assert seen["token_ids"] == TOKENS and "".join(seen["texts"]) == text


def test_curl_on_the_side_port(server: Server, text: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")

    def curl(path: str, *more: str) -> str:
        command = ["curl", "--silent", "--fail-with-body", *more, f"{server.http}{path}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert json.loads(curl("/readyz")) == {"state": "ready"}
    (model,) = json.loads(curl("/v1/models"))["data"]
    body = {"model": model["id"], "prompt": ROW["prompt"], "max_tokens": COUNT, "temperature": 0}
    answer = json.loads(curl("/v1/completions", "--json", json.dumps(body)))
    assert answer["choices"][0]["text"] == text
    assert "distaff" in curl("/metrics")


def test_the_documents_show_what_works(clients: Clients, server: Server, gateway: str) -> None:
    pages = [(ROOT / "docs" / "serving" / name).read_text() for name in ("compatible.md", "http.md")]
    document = "\n".join(pages).replace("http://127.0.0.1:30000", gateway)
    document = document.replace("127.0.0.1:50051", server.target).replace("http://127.0.0.1:8000", server.http)
    programs = re.findall(r"^```python\n(.*?)^```", document, re.DOTALL | re.MULTILINE)
    lines = re.findall(r"^```text\n(grpcurl .*?)^```", document, re.DOTALL | re.MULTILINE)
    commands = [[clients.path("python"), "-c", program] for program in programs]
    for line in lines:
        name, *arguments = shlex.split(line)
        commands.append([clients.path(name), *arguments])
    assert (len(programs), len(lines)) == (3, 1)
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and done.stdout.strip(), f"{command}: {done.stdout}{done.stderr}"
