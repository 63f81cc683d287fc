"""`distaff generate`: text from a model."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..backends.errors import UsageError
from .options import Debug, Dtype, Json, Offline
from .output import TextStream, print_json
from .progress import ProgressDisplay
from .reporting import reporting
from .startup import prepare_devices

if TYPE_CHECKING:
    from ..serving import LLM, Generation, SamplingParams


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
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", help="Most tokens to generate. [default: 128]", metavar="N")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature", help="0 takes the likeliest token each time (greedy). [default: 1.0]", metavar="X"
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", help="Draw from the N likeliest tokens only; 0: all. [default: 0]", metavar="N"),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            "--top-p",
            help="Draw from the likeliest tokens that make up this probability. [default: 1.0]",
            metavar="X",
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            "--min-p", help="Drop tokens less likely than this share of the likeliest. [default: 0.0]", metavar="X"
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", help="The same seed gives the same text. [default: drawn; --json tells it]", metavar="N"
        ),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", help="End before this text; may be given several times.", metavar="TEXT"),
    ] = None,
    dtype: Annotated[Dtype, typer.Option("--dtype", help="What weights and arithmetic are held in.")] = Dtype.FLOAT32,
    backend: Annotated[str, typer.Option("--backend", help="What computes: auto or reference.")] = "auto",
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
      distaff generate -m ./my-model -p "def add(a, b):" --stop "class" --dtype bfloat16

    \b
    --json prints one object:
      text, token_ids (those generated, a token that ended the text included), prompt_token_ids,
      finish_reason ("stop" or "length"), usage, timings (load, compile, prefill and decode in
      seconds, tokens_per_second of decode), seed
    """
    with reporting(debug):
        text = _read_prompt(prompt, prompt_file)
        if system is not None and not chat:
            raise UsageError("--system needs --chat: without a chat template there is no system message")
        chosen = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "seed": seed,
            "stop": tuple(stop) if stop else None,
        }
        prepare_devices()
        from ..serving import LLM, SamplingParams

        params = SamplingParams(**{name: value for name, value in chosen.items() if value is not None})
        with ProgressDisplay(model) as display:
            llm = LLM(model, dtype=dtype.value, backend=backend, offline=offline or None, on_progress=display)
            generation = _begin(llm, text, params, chat=chat, system=system)
            _write(generation, display, as_json=json)


def _begin(llm: "LLM", text: str, params: "SamplingParams", *, chat: bool, system: str | None) -> "Generation":
    if not chat:
        return llm.stream(text, params)
    messages = [{"role": "system", "content": system}] if system is not None else []
    return llm.stream(llm.chat_ids([*messages, {"role": "user", "content": text}]), params)


def _write(generation: "Generation", display: ProgressDisplay, *, as_json: bool) -> None:
    stream = TextStream()
    for event in generation:
        display.close()
        if not as_json:
            stream.write(event.text)
    completion = generation.completion()
    if as_json:
        print_json(completion.to_dict())
        return
    stream.finish()
    if sys.stderr.isatty():
        times, usage = completion.timings, completion.usage
        sys.stderr.write(
            f"[{usage.prompt_tokens} + {usage.completion_tokens} tokens; load {times.load:.1f} s, compile "
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
