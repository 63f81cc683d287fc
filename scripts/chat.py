"""`distaff chat`: a conversation with a running server, in the terminal."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..backends.errors import UsageError
from .chat_terminal import Terminal, statistics
from .client_options import Ca, Target, TokenFile, read_token
from .options import Debug, Json
from .output import TextStream, print_json
from .reporting import reporting
from .sampling_options import (
    END,
    FrequencyPenalty,
    MinP,
    PresencePenalty,
    RepetitionPenalty,
    Seed,
    Stop,
    Temperature,
    TopK,
    TopP,
    given,
)

if TYPE_CHECKING:
    from ..serving.client.conversation import Conversation


def chat(
    message: Annotated[
        list[str] | None,
        typer.Argument(
            help="Ask this, print the answer, and end; - stands for what is piped in.", metavar="MESSAGE..."
        ),
    ] = None,
    target: Target = "127.0.0.1:50051",
    token_file: TokenFile = None,
    ca: Ca = None,
    model: Annotated[str, typer.Option("--model", "-m", help="What to ask. [default: what is served]")] = "",
    system: Annotated[
        str | None, typer.Option("--system", help="What stands before the conversation.", metavar="TEXT")
    ] = None,
    history: Annotated[
        Path | None, typer.Option("--load", help="Go on with a conversation that was saved.", metavar="FILE")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", help="Write the conversation here when it ends.", metavar="FILE")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            help="Most tokens of an answer. [default: what the context holds]",
            metavar="N",
            rich_help_panel=END,
        ),
    ] = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    seed: Seed = None,
    repetition_penalty: RepetitionPenalty = None,
    presence_penalty: PresencePenalty = None,
    frequency_penalty: FrequencyPenalty = None,
    stop: Stop = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Talk with a model that a server serves (distaff serve).

    In a terminal it asks for your next message until you leave; with MESSAGE, or with a text piped in, it answers once:
    the answer goes to stdout, all else to stderr. The server needs a model with a chat template.

    \b
    Examples:
      distaff chat
      distaff chat "Why is the sky blue?"
      distaff chat --system "Answer in French." --temperature 0 --save talk.json
      git diff | distaff chat "Describe this change in one line:" -
      distaff chat --target grpcs://llm.example.org:443 --token-file token.txt

    \b
    In a terminal:
      /system TEXT  /reset  /retry  /set NAME=X  /save FILE  /load FILE  /help  /quit

    \b
    --json, with a MESSAGE or a pipe, prints one object:
      id, text, token_ids, finish_reason, usage, timings, seed, choices, prompt_logprobs
    """
    with reporting(debug):
        sampling = given(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            stop=stop,
        )
        sampling["max_tokens"] = max_tokens
        question = _question(message)
        if question is None and json:
            raise UsageError("--json is for one answer: give a message, or pipe one in")
        from ..serving.client import Client
        from ..serving.client.conversation import Conversation

        with Client(target, token=read_token(token_file), ca=ca) as client:
            conversation = Conversation(client, system=system, sampling={**sampling, "model": model or None})
            if history is not None:
                conversation.load(history)
            if question is None:
                served = client.model(model)
                if not served.has_chat_template:
                    raise UsageError(f"{served.name} has no chat template: it goes on with texts, but holds no talks")
                Terminal(conversation, served.name, target).run()
            else:
                _answer_once(conversation, question, as_json=json)
            if save is not None:
                conversation.save(save)


def _question(message: list[str] | None) -> str | None:
    """What is asked once: the words, "-" among them for what is piped in; or that alone. None for a talk."""
    if message:
        return " ".join(f"\n{_piped()}\n" if word == "-" else word for word in message).strip("\n")
    if sys.stdin.isatty():
        return None
    question = _piped()
    if not question.strip():
        raise UsageError('no message: give one, as in: distaff chat "Why is the sky blue?", or pipe a text in')
    return question


def _piped() -> str:
    try:
        return sys.stdin.read().strip("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin: is not UTF-8 ({error}); expected a text") from error


def _answer_once(conversation: "Conversation", question: str, *, as_json: bool) -> None:
    stream = TextStream()
    result = conversation.say(question, (lambda _: None) if as_json else stream.write)
    if as_json:
        print_json(result.to_dict())
        return
    stream.finish()
    if sys.stderr.isatty():
        sys.stderr.write(statistics(result) + "\n")
