"""A model in a few lines of Python: load it by name, give it text, get text."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp

from ..backends.compile_cache import enable_compile_cache
from ..backends.errors import InvalidParameterError, UsageError
from ..backends.processes import OfProcesses
from ..backends.quantized import bytes_per_weight
from ..backends.select import select_backend
from ..models.checkpoints import cache_dir, open_checkpoint, resolve_model
from ..models.compress import held_weights
from ..models.errors import TokenizerError
from ..models.families import config_from_hf
from ..models.tokenizer import Tokenizer
from ..sharding.backend import ShardedBackend
from ..sharding.multihost import Hosts, check_spread
from ..sharding.shard import shard_backends
from .bad_words import spellings
from .build import build_engine, build_one_program
from .engine import Engine
from .engine_config import EngineConfig
from .errors import EmptyPromptError
from .generation import Generation
from .host_device import Follower
from .host_join import join
from .host_link import Link
from .host_processes import meet_processes
from .one_program import OneProgram
from .replica_device import SharedDevice
from .replicas import Replicas
from .results import Completion, Embedding, Score
from .runner import Device
from .types import Kind, Progress, Request, SamplingParams

KV_DTYPES: Mapping[str, str] = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "int8": "int8",
    "fp8": "float8_e4m3fn",
}
"""What the cache may be held in, and what JAX calls it."""


def cache_dtype(kv_dtype: str | None, dtype: str) -> str:
    """What JAX calls the type of a cache that was asked for, by default that of the rest.

    Raises:
        InvalidParameterError: it is none of KV_DTYPES.
    """
    if kv_dtype is None:
        return dtype
    if kv_dtype not in KV_DTYPES:
        raise InvalidParameterError("kv_dtype", kv_dtype, f"one of {', '.join(KV_DTYPES)}")
    return KV_DTYPES[kv_dtype]


class LLM:
    """A loaded model.

    Args:
        model: an alias (`distaff models` lists them), a folder, a .gguf file, an Orbax folder or a hub id.
        dtype: "float32" or "bfloat16", of weights, activations and cache.
        kv_dtype: of the cache instead, "int8" or "fp8" too, with a scale for each token.
        quantize: how weights are rounded while they are loaded: a name of models.compress.SCHEMES, such as "int8"
            (weights and activations of 8 bits, the stream turned before where the family allows) or "int8-weight".
            "stored" multiplies numbers of few bits as the checkpoint has them, "none" expands them to dtype; None does
            what the format is meant for: GGUF is expanded, quantised Hugging Face folders are not.
        backend: what runs it; "auto" picks.
        layout: how it lies on several devices, such as "tensor=4" (docs/layouts.md); None is one device.
        hosts: the hosts whose devices the layout uses together (docs/multihost.md); None is this one alone. Each makes
            the same LLM; those that `follows` is true of call `follow`.
        one_program: replicas of the layout step together, in one program, as they always do on several hosts;
            otherwise each is an engine of its own.
        offline: True never touches the network; None follows HF_HUB_OFFLINE.
        on_progress: called as work goes on.
        config: the engine's fields (EngineConfig) by name: max_batch, context, kv_memory, policy, deterministic, ...

    Attributes:
        path: of its checkpoint.
        config, dtype, layout: of the model as it is held, of its numbers, and how it lies on devices ("": on one).
        quantize: what was asked of its weights; "" is nothing.
        remarks: what of the weights came otherwise than they are stored, for people.
        weight_bytes: what a weight takes, with its part of scales.
        tokenizer, eos_ids: None where only token ids are understood; the tokens that end a text.
        engine: what runs the requests, an Engine, or several as Replicas; `engine.submit` takes them one by one, with
            priorities and cache salts.

    Raises:
        DistaffError: the model cannot be found, read or run; the message says why and what to do.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str = "float32",
        kv_dtype: str | None = None,
        quantize: str | None = None,
        backend: str = "auto",
        layout: str | None = None,
        hosts: Hosts | None = None,
        one_program: bool = False,
        offline: bool | None = None,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        **config: Any,
    ) -> None:
        if dtype not in ("float32", "bfloat16"):
            raise InvalidParameterError("dtype", dtype, "float32 or bfloat16")
        engine_config = EngineConfig(**config)
        self._link = None if hosts is None else join(hosts)
        self._following: Follower | None = None
        try:
            self._load(
                model,
                engine_config,
                dtype=dtype,
                kv_dtype=kv_dtype,
                quantize=quantize,
                backend=backend,
                layout=layout,
                one_program=one_program,
                offline=offline,
                on_progress=on_progress,
            )
        except Exception as error:
            if self._link is not None:
                self._link.fail(error)
            raise

    def _load(
        self,
        model: str | Path,
        engine_config: EngineConfig,
        *,
        dtype: str,
        kv_dtype: str | None,
        quantize: str | None,
        backend: str,
        layout: str | None,
        one_program: bool,
        offline: bool | None,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.backend = select_backend(backend)
        enable_compile_cache(cache_dir() / "jax")
        start = time.perf_counter()

        def report(stage: str) -> Callable[[int, int], None]:
            return lambda done, total: on_progress(Progress(stage, done, total))

        path = resolve_model(str(model), offline=offline, progress=report("resolve"))
        checkpoint = open_checkpoint(path)
        self.path = checkpoint.path
        stored = config_from_hf(checkpoint.hf_config, source=str(self.path))
        self.dtype, self.layout, self.quantize = dtype, layout or "", quantize or ""
        held = cache_dtype(kv_dtype, dtype)
        form = held_weights(quantize, checkpoint, stored)
        self.config = form.config
        sharded: tuple[ShardedBackend, ...] = ()
        if layout is not None:
            together = one_program or self._link is not None
            sharded = shard_backends(
                self.backend,
                self.config,
                layout,
                dtype,
                one_program=together,
                roundings=form.roundings,
                expandable=form.made is None,
            )
            form = form.under(sharded[0].roundings)
        if sharded:
            self.backend = sharded[0]
            if jnp.dtype(held).itemsize == 1 and self.backend.layout.parts("context") > 1:
                raise UsageError(
                    f"kv_dtype {kv_dtype} with layout {layout}: shared pages hold no scales; use bfloat16, or split "
                    "heads with tensor"
                )
        self.remarks = form.remarks
        if self._link is not None:
            started = {"dtype": dtype, "kv_dtype": kv_dtype, "quantize": quantize, "layout": layout}
            self._check_hosts(self._link, str(model), started, engine_config)
        self.backend.check(
            self.config.cache_groups,
            dtype=jnp.dtype(dtype),
            kv_dtype=jnp.dtype(held),
            page_size=self.backend.page_size,
        )
        self.tokenizer: Tokenizer | None = None
        self._no_tokenizer: TokenizerError | None = None
        try:
            self.tokenizer = checkpoint.tokenizer()
        except TokenizerError as error:
            # Token ids still work; text is refused with this reason.
            self._no_tokenizer = error
        loaded = form.load(
            checkpoint, dtype=jnp.dtype(dtype), place=sharded[0].place if sharded else None, progress=report("load")
        )
        self.weight_bytes, hidden = bytes_per_weight(loaded.weights), loaded.hidden
        # Read once; the other replicas have copies, from device to device.
        weights = [loaded.weights, *(replica.copied(loaded.weights) for replica in sharded[1:])]
        del loaded
        self.eos_ids = _eos_ids(checkpoint.generation_config, checkpoint.hf_config, self.tokenizer)
        engines: list[Engine | OneProgram] = []
        for replica in sharded or (None,):
            build: Callable[..., Engine | OneProgram] = build_engine
            if replica is not None and replica.layout.replicas > 1:
                build = build_one_program
            if self._link is not None:
                build = partial(build, link=self._link, on_device=self._on_device)
            engine = build(
                self.config,
                weights.pop(0),
                replica or self.backend,
                engine_config,
                dtype=dtype,
                kv_dtype=held,
                eos_ids=self.eos_ids,
                tokenizer=self.tokenizer,
                hidden=hidden,
                metrics=engines[0].metrics if engines else None,
                on_compile=lambda number: on_progress(Progress("compile", number, 0)),
            )
            engines.append(engine)
        self.engine = engines[0]
        if len(engines) > 1:
            self.engine = Replicas([engine for engine in engines if isinstance(engine, Engine)])
        self.engine.load_seconds = time.perf_counter() - start

    @overload  # a str is a Sequence[str] too, hence the overlap
    def generate(  # pyright: ignore[reportOverlappingOverload]
        self, prompt: str, params: SamplingParams | None = None
    ) -> Completion: ...
    @overload
    def generate(self, prompt: Sequence[str], params: SamplingParams | None = None) -> list[Completion]: ...

    def generate(
        self, prompt: str | Sequence[str], params: SamplingParams | None = None
    ) -> Completion | list[Completion]:
        """Continues a text, or several at once.

        Raises:
            EmptyPromptError, ContextLengthError: a prompt holds no token, or too many.
        """
        if isinstance(prompt, str):
            return self.stream(prompt, params).completion()
        results = self.engine.generate([self._request(each, params) for each in prompt])
        return [result for result in results if isinstance(result, Completion)]

    def chat(
        self, messages: Sequence[Mapping[str, Any]], params: SamplingParams | None = None, **variables: Any
    ) -> Completion:
        """Answers a conversation through the model's chat template.

        Args:
            messages: {"role": ..., "content": ...} each.
            params: how to sample.
            variables: what else the template reads, such as `tools`.

        Raises:
            ChatTemplateError: the model has no template, or it refused.
        """
        return self.stream(self.chat_ids(messages, **variables), params).completion()

    def chat_ids(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> list[int]:
        """Token ids of a conversation, ready for the answer."""
        tokenizer = self._text()
        # The template writes special tokens out itself.
        return tokenizer.encode(tokenizer.render_chat(messages, **variables), add_special=False)

    def stream(self, prompt: str | Sequence[int], params: SamplingParams | None = None) -> Generation:
        """Continues a text or token ids, an event for each token.

        Raises:
            EmptyPromptError, ContextLengthError: the prompt holds no token, or too many.
            InvalidParameterError: a token id that the vocabulary lacks, or `stop` without a tokenizer.
        """
        return self.engine.submit(self._request(prompt, params))

    def score(self, texts: Sequence[str | Sequence[int]], *, num_top: int | None = None) -> list[Score]:
        """The log-probabilities of each text's own tokens, and of the `num_top` most likely ones in their places."""
        params = SamplingParams(prompt_logprobs=num_top)
        results = self.engine.generate([self._request(text, params, kind=Kind.SCORE) for text in texts])
        return [result for result in results if isinstance(result, Score)]

    def embed(
        self, texts: Sequence[str | Sequence[int]], *, pooling: Literal["mean", "last"] = "mean"
    ) -> list[Embedding]:
        """Each text as a vector: its last hidden states, their mean or those of the last token."""
        requests = [self._request(text, None, kind=Kind.EMBED, pooling=pooling) for text in texts]
        return [result for result in self.engine.generate(requests) if isinstance(result, Embedding)]

    @property
    def follows(self) -> bool:
        """Whether this is one of several hosts, and not the one that takes requests: `follow` is all it can do."""
        return self._following is not None

    def follow(self) -> None:
        """On a host that `follows`: computes what host 0 plans, until that closes its LLM.

        Raises:
            HostsError: a host was lost, or the others failed.
        """
        if self._following is None:
            raise UsageError("follow() is for hosts other than the first of several; this one takes requests")
        self._following.follow()

    def close(self) -> None:
        """Ends what runs, and lets go of weights and cache; on host 0 of several the others' `follow` returns."""
        self.engine.close()

    def _check_hosts(
        self, link: Link, model: str, started: Mapping[str, str | None], engine_config: EngineConfig
    ) -> None:
        """Refuses hosts that were started differently, and layouts that do not spread over all of them."""
        options = {name: str(value) for name, value in asdict(engine_config).items()}
        link.agree({"model": Path(model).name, "backend": self.backend.name, **started, **options})
        if not isinstance(self.backend, ShardedBackend):
            raise UsageError("hosts: several hosts need a layout that uses their devices, such as tensor=8 or auto")
        check_spread(self.backend.layout, link.hosts, jax.devices())
        if isinstance(self.backend.inner, OfProcesses):
            meet_processes(self.backend.inner, link)

    def _on_device(self, device: Device | SharedDevice) -> None:
        self._following = device if isinstance(device, Follower) else None

    def _request(self, prompt: str | Sequence[int], params: SamplingParams | None, **fields: Any) -> Request:
        params = params or SamplingParams()
        if params.stop:
            self._text()
        ids = self._text().encode(prompt) if isinstance(prompt, str) else prompt
        if prompt == "":
            raise EmptyPromptError("the prompt is empty, expected at least one token of text")
        words = spellings(params.bad_words, self._text()) if params.bad_words else ()
        return Request(tuple(ids), params, bad_word_ids=words, **fields)

    def _text(self) -> Tokenizer:
        if self.tokenizer is None:
            assert self._no_tokenizer is not None
            raise self._no_tokenizer
        return self.tokenizer


def _eos_ids(generation: Mapping[str, Any], config: Mapping[str, Any], tokenizer: Tokenizer | None) -> frozenset[int]:
    """Tokens that end a text: the generation settings decide, else the tokenizer, else the configuration."""
    for given in (generation.get("eos_token_id"), tokenizer and sorted(tokenizer.eos_ids), config.get("eos_token_id")):
        if given is not None and given != []:
            return frozenset([given] if isinstance(given, int) else given)
    return frozenset()
