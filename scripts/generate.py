"""`distaff generate`: text from a model."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..backends.errors import UsageError
from . import sampling_options as sampling
from .choice_writer import ChoiceWriter
from .logprob_table import table
from .options import (
    ENGINE,
    Backend,
    Context,
    Coordinator,
    Debug,
    Deterministic,
    Devices,
    Dtype,
    Host,
    Hosts,
    HostTimeout,
    Json,
    KVDtype,
    KVMemory,
    Layout,
    MaxBatch,
    NumHosts,
    Offline,
    Quantize,
    parse_size,
)
from .output import print_json
from .progress import ProgressDisplay
from .reporting import reporting
from .sampling_options import given
from .startup import keep_stdout, prepare_layout, print_remarks, read_hosts

if TYPE_CHECKING:
    from ..serving import LLM, Completion, Generation, SamplingParams

_MAX_BATCH = 32


def generate(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="A name (see 'distaff models'), a folder, a .gguf file, an Orbax folder or a hub id.",
        ),
    ],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The text to continue.")] = None,
    prompt_file: Annotated[
        str | None,
        typer.Option("--prompt-file", metavar="FILE", help="Read the prompt from a file ('-': stdin), UTF-8."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Send the prompt as a user's message, through the model's chat template.")
    ] = False,
    system: Annotated[str | None, typer.Option("--system", help="With --chat: the system message before it.")] = None,
    max_tokens: sampling.MaxTokens = None,
    min_tokens: sampling.MinTokens = None,
    stop: sampling.Stop = None,
    stop_token_id: sampling.StopTokenId = None,
    ignore_eos: sampling.IgnoreEos = False,
    temperature: sampling.Temperature = None,
    top_k: sampling.TopK = None,
    top_p: sampling.TopP = None,
    min_p: sampling.MinP = None,
    typical_p: sampling.TypicalP = None,
    seed: sampling.Seed = None,
    repetition_penalty: sampling.RepetitionPenalty = None,
    presence_penalty: sampling.PresencePenalty = None,
    frequency_penalty: sampling.FrequencyPenalty = None,
    logit_bias: sampling.LogitBias = None,
    bad_word: sampling.BadWord = None,
    allow_token_ids: sampling.AllowTokenIds = None,
    n: sampling.N = None,
    logprobs: sampling.Logprobs = None,
    prompt_logprobs: sampling.PromptLogprobs = None,
    echo: sampling.Echo = False,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="What weights and arithmetic are held in.", rich_help_panel=ENGINE)
    ] = Dtype.FLOAT32,
    kv_dtype: KVDtype = None,
    quantize: Quantize = None,
    backend: Backend = "auto",
    layout: Layout = None,
    devices: Devices = None,
    max_batch: MaxBatch = None,
    kv_memory: KVMemory = None,
    context: Context = None,
    deterministic: Deterministic = False,
    no_prefix_cache: Annotated[
        bool,
        typer.Option("--no-prefix-cache", help="Compute the prompt for each answer again.", rich_help_panel=ENGINE),
    ] = False,
    hosts: Hosts = None,
    coordinator: Coordinator = None,
    num_hosts: NumHosts = None,
    host: Host = None,
    host_timeout: HostTimeout = None,
    offline: Offline = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Generate text.

    The prompt is --prompt, --prompt-file or what is piped in (one newline at its very end is dropped).
    The text goes to stdout as it is generated, everything else to stderr.

    \b
    Examples:
      distaff generate -m smollm2-135m-instruct --chat -p "Why is the sky blue?"
      distaff generate -m smollm2-135m-instruct --temperature 0 --max-tokens 20 -p "Once upon a time"
      echo "The capital of France is" | distaff generate -m smollm2-135m-instruct --json
      distaff generate -m smollm2-135m-instruct --n 3 --top-p 0.9 --logprobs 2 -p "My favourite colour is"
      distaff generate -m ./my-model -p "def add(a, b):" --stop "class" --dtype bfloat16

    \b
    --json prints one object:
      text, token_ids (those generated, a token that ended the text included), prompt_token_ids,
      finish_reason ("stop" or "length"), usage, timings (load, compile, queue, ttft, prefill and
      decode in seconds, tokens_per_second of decode), seed, choices (with --n all of them: index,
      text, token_ids, finish_reason, stopped_by, logprobs) and prompt_logprobs
    """
    with reporting(debug):
        text = _read_prompt(prompt, prompt_file)
        if system is not None and not chat:
            raise UsageError("--system needs --chat: without a chat template there is no system message")
        chosen = given(
            min_tokens=min_tokens,
            stop=stop,
            stop_token_ids=stop_token_id,
            ignore_eos=ignore_eos,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            seed=seed,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=sampling.parse_logit_bias(logit_bias or []),
            bad_words=bad_word,
            allowed_token_ids=sampling.parse_ids("--allow-token-ids", allow_token_ids),
            n=n,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            echo=echo,
        )
        if max_tokens is not None:
            chosen["max_tokens"] = sampling.parse_max_tokens(max_tokens)
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
        prepare_layout(layout, devices)
        joined = read_hosts(hosts, coordinator, num_hosts, host, host_timeout, layout)
        if joined is not None:
            keep_stdout()
            engine["hosts"] = joined
        from ..serving import LLM, SamplingParams

        params = SamplingParams(**chosen)
        engine.setdefault("max_batch", min(params.n, _MAX_BATCH))  # nothing else comes: a small engine starts sooner
        with ProgressDisplay(model) as display:
            llm = LLM(model, dtype=dtype.value, backend=backend, offline=offline or None, on_progress=display, **engine)
            print_remarks(llm, layout)
            if llm.follows:
                display.close()
                llm.follow()
                return
            generation = _begin(llm, text, params, chat=chat, system=system)
            completion = _write(generation, params.n, display, as_json=json)
        if not json:
            _write_logprobs(llm, completion)
            _write_times(completion)


def _begin(llm: "LLM", text: str, params: "SamplingParams", *, chat: bool, system: str | None) -> "Generation":
    if not chat:
        return llm.stream(text, params)
    messages = [{"role": "system", "content": system}] if system is not None else []
    return llm.stream(llm.chat_ids([*messages, {"role": "user", "content": text}]), params)


def _write(generation: "Generation", num_choices: int, display: ProgressDisplay, *, as_json: bool) -> "Completion":
    writer = ChoiceWriter(num_choices)
    for event in generation:
        display.close()
        if not as_json:
            writer.write(event.choice, event.text, ended=event.finish_reason is not None)
    completion = generation.completion()
    if as_json:
        print_json(completion.to_dict())
    else:
        writer.finish()
    return completion


def _write_logprobs(llm: "LLM", completion: "Completion") -> None:
    def spell(token: int) -> str:
        return str(token) if llm.tokenizer is None else repr(llm.tokenizer.decode([token], skip_special=False))

    tables = [("prompt", completion.prompt_logprobs)]
    tables += [(f"choice {choice.index + 1}", choice.logprobs) for choice in completion.choices]
    for title, entries in tables:
        if entries is not None:
            sys.stderr.write("\n".join([f"[{title}]", *table(entries, spell)]) + "\n")


def _write_times(completion: "Completion") -> None:
    if not sys.stderr.isatty():
        return
    times, usage = completion.timings, completion.usage
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    sys.stderr.write(
        f"[{usage.prompt_tokens}{cached} + {usage.completion_tokens} tokens; load {times.load:.1f} s, compile "
        f"{times.compile:.1f} s, prefill {times.prefill:.2f} s, {times.tokens_per_second:.1f} tokens/s]\n"
    )


def _read_prompt(prompt: str | None, prompt_file: str | None) -> str:
    """The one prompt that was given, wherever it stands."""
    if prompt is not None and prompt_file is not None:
        raise UsageError("--prompt and --prompt-file exclude each other: give one of them")
    if prompt is None:
        if prompt_file is None and sys.stdin.isatty():
            raise UsageError('no prompt: give --prompt "...", --prompt-file FILE, or pipe a text in')
        prompt = _read_text(prompt_file or "-")
    if not prompt:
        raise UsageError("the prompt is empty: expected at least one character")
    return prompt


def _read_text(name: str) -> str:
    shown = "stdin" if name == "-" else name
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"--prompt-file {shown}: cannot be read ({error.strerror}); give a text file") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{shown}: byte {error.start} is 0x{data[error.start]:02x}, not UTF-8; "
            "save the prompt as UTF-8 (iconv -f LATIN1 -t UTF-8 converts)"
        ) from error
    return text.removesuffix("\r\n" if text.endswith("\r\n") else "\n")
