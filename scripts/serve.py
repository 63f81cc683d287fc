"""`distaff serve`: a model behind gRPC and HTTP."""

import ipaddress
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..backends.errors import UsageError
from .options import (
    ENGINE,
    Backend,
    Context,
    Debug,
    Deterministic,
    Devices,
    Dtype,
    KVDtype,
    KVMemory,
    Layout,
    MaxBatch,
    Offline,
    Quantize,
    parse_size,
)
from .progress import ProgressDisplay
from .reporting import reporting
from .sampling_options import given
from .server_options import LIFE, LISTEN, WHO, Grace, ListenHost, ListenPort, TlsCert, TlsClientCa, TlsKey, tls_files
from .startup import prepare_layout, print_remarks

if TYPE_CHECKING:
    from ..serving.serve import Ports

LIMITS = "How much it takes"


def serve(
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="A name (see 'distaff models'), a folder, a .gguf file, an Orbax folder or a hub id."
        ),
    ],
    host: ListenHost = "127.0.0.1",
    port: ListenPort = 50051,
    http_port: Annotated[
        int,
        typer.Option(
            "--http-port",
            help="For metrics, probes, the status page and OpenAI's API; 0 takes a free one.",
            min=0,
            max=65535,
            rich_help_panel=LISTEN,
        ),
    ] = 8000,
    no_http: Annotated[bool, typer.Option("--no-http", help="No HTTP side port.", rich_help_panel=LISTEN)] = False,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            "--served-model-name",
            help="A name that requests may give; others are refused. May be given several times. [default: any]",
            metavar="NAME",
            rich_help_panel=LISTEN,
        ),
    ] = None,
    reflection: Annotated[
        bool | None,
        typer.Option(
            "--reflection/--no-reflection",
            help="Whether clients may ask for the protocol. [default: on a loopback address]",
            rich_help_panel=LISTEN,
        ),
    ] = None,
    channelz: Annotated[
        bool,
        typer.Option("--channelz", help="Tell clients about connections, for debugging.", rich_help_panel=LISTEN),
    ] = False,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_client_ca: TlsClientCa = None,
    http_tls: Annotated[
        bool, typer.Option("--http-tls", help="HTTP with TLS too, as gRPC has it.", rich_help_panel=WHO)
    ] = False,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            help="Callers need a bearer token of this file (docs/commands/serve.md).",
            metavar="FILE",
            rich_help_panel=WHO,
        ),
    ] = None,
    admin: Annotated[
        bool,
        typer.Option("--admin", help="Without --token-file: let everybody use the Admin service.", rich_help_panel=WHO),
    ] = False,
    max_queued: Annotated[
        int,
        typer.Option("--max-queued", help="Most requests that wait.", metavar="N", min=1, rich_help_panel=LIMITS),
    ] = 1024,
    max_streams: Annotated[
        int,
        typer.Option(
            "--max-streams", help="Most requests that wait or run.", metavar="N", min=1, rich_help_panel=LIMITS
        ),
    ] = 2048,
    max_tokens_in_flight: Annotated[
        int | None,
        typer.Option(
            "--max-tokens-in-flight",
            help="Most tokens of their prompts and longest answers, summed. [default: no limit]",
            metavar="N",
            min=1,
            rich_help_panel=LIMITS,
        ),
    ] = None,
    stall_seconds: Annotated[
        float,
        typer.Option(
            "--stall-seconds",
            help="A request whose answer nobody reads for so long ends.",
            metavar="X",
            min=0.1,
            rich_help_panel=LIMITS,
        ),
    ] = 30.0,
    grace: Grace = 30.0,
    notice: Annotated[
        float,
        typer.Option(
            "--notice",
            help="Seconds between telling probes of the end and refusing requests.",
            metavar="X",
            min=0,
            rich_help_panel=LIFE,
        ),
    ] = 0.0,
    profile_dir: Annotated[
        Path | None,
        typer.Option(
            "--profile-dir", help="Where Admin.StartProfile leaves traces.", metavar="DIR", rich_help_panel=LIFE
        ),
    ] = None,
    batch_dir: Annotated[
        Path | None,
        typer.Option(
            "--batch-dir",
            help="Run batch jobs, and keep them and their files here (/v1/files, /v1/batches, BatchJobs).",
            metavar="DIR",
            rich_help_panel=LIFE,
        ),
    ] = None,
    log_level: Annotated[
        str,
        typer.Option("--log-level", help="debug, info, warning or error.", metavar="LEVEL", rich_help_panel=LIFE),
    ] = "info",
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write prompts to the log.", rich_help_panel=LIFE)
    ] = False,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="What weights and arithmetic are held in.", rich_help_panel=ENGINE)
    ] = Dtype.FLOAT32,
    kv_dtype: KVDtype = None,
    quantize: Quantize = None,
    backend: Backend = "auto",
    layout: Layout = None,
    devices: Devices = None,
    replicas: Annotated[
        int | None,
        typer.Option(
            "--replicas",
            help="So many engines, each on devices of its own, behind one address.",
            metavar="N",
            min=1,
            rich_help_panel=ENGINE,
        ),
    ] = None,
    max_batch: MaxBatch = None,
    kv_memory: KVMemory = None,
    context: Context = None,
    deterministic: Deterministic = False,
    no_prefix_cache: Annotated[
        bool,
        typer.Option("--no-prefix-cache", help="Compute each prompt from its beginning.", rich_help_panel=ENGINE),
    ] = False,
    offline: Offline = False,
    debug: Debug = False,
) -> None:
    """Serve a model over gRPC, and over HTTP beside it.

    One line on stdout says when it is ready, and at which ports; the log goes to stderr, an object a line. It is ready
    when the first program is compiled; the rest compile behind.

    On one port: distaff.v1 (Inference, Tokenization, Models, Admin), vLLM's VllmEngine, KServe v2 as Triton speaks it,
    JetStream's Orchestrator, health and reflection. On the other: OpenAI's completions, /metrics, /healthz, /readyz and
    a status page.

    SIGTERM and SIGINT drain: probes are told first, new requests are refused with a time to come back, running ones
    get --grace seconds, and the rest end with what they have. A second signal does not wait. Exit codes: 0 drained,
    1 the engine failed, 143 a second SIGTERM.

    \b
    Examples:
      distaff serve -m smollm2-135m-instruct
      distaff serve -m smollm2-135m-instruct --host 0.0.0.0 --token-file tokens.yaml --tls-cert s.pem --tls-key s.key
      distaff serve -m ./my-model --port 0 --no-http --max-batch 64 --dtype bfloat16
      distaff serve -m smollm2-135m-instruct --replicas 2 --devices 2
    """
    with reporting(debug):
        tls = tls_files(tls_cert, tls_key, tls_client_ca)
        if http_tls and (tls is None or no_http):
            raise UsageError("--http-tls needs --tls-cert and --tls-key, and the HTTP port")
        if admin and token_file is not None:
            raise UsageError("--admin is for servers without --token-file: mark a token with admin: true instead")
        if log_level not in ("debug", "info", "warning", "error"):
            raise UsageError(f"--log-level is {log_level!r}, expected debug, info, warning or error")
        if replicas is not None:
            layout = f"data={replicas}" if layout is None else f"data={replicas},{layout}"
        prepare_layout(layout, devices)
        from ..serving.front import Front, FrontLimits
        from ..serving.llm import LLM
        from ..serving.rpc.settings import RpcSettings
        from ..serving.serve import ServeSettings, card_of, run_server

        rpc = RpcSettings(
            host=host,
            port=port,
            reflection=_is_loopback(host) if reflection is None else reflection,
            channelz=channelz,
        )
        settings = ServeSettings(
            rpc=rpc,
            http_host=host,
            http_port=None if no_http else http_port,
            tls=tls,
            http_tls=http_tls,
            tokens=token_file,
            open_admin=admin,
            grace=grace,
            notice=notice,
            profile_dir=profile_dir,
            batch_dir=batch_dir,
            log_level=log_level,
            log_prompts=log_prompts,
        )
        limits = FrontLimits(
            max_queued=max_queued,
            max_streams=max_streams,
            max_tokens_in_flight=max_tokens_in_flight,
            stall_seconds=stall_seconds,
        )
        engine = given(
            max_batch=max_batch,
            kv_memory=None if kv_memory is None else parse_size("--kv-memory", kv_memory),
            context=context,
            deterministic=deterministic,
            layout=layout,
            quantize=quantize,
            kv_dtype=kv_dtype,
        )
        if no_prefix_cache:
            engine["prefix_cache"] = False
        with ProgressDisplay(model) as display:
            llm = LLM(model, dtype=dtype.value, backend=backend, offline=offline or None, on_progress=display, **engine)
            print_remarks(llm, layout)
            names = tuple(served_model_name or ())
            card = card_of(llm, names[0] if names else Path(model).name)

            def make_front() -> Front:
                return Front(llm.engine, tokenizer=llm.tokenizer, card=card, limits=limits, served_names=names)

            def on_ready(ports: "Ports") -> None:
                display.close()
                http = "" if ports.http is None else f", http {host}:{ports.http}"
                sys.stdout.write(f"distaff serve: grpc {host}:{ports.grpc}{http}, model {card.name}\n")
                sys.stdout.flush()

            code = run_server(make_front, settings, on_ready)
        raise typer.Exit(code)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
