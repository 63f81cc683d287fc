"""One program that `bench_peers` compares, in a process of its own: loads a model, then does what stdin says.

    python peer_runner.py vllm|openvino|transformers|llama|distaff SETTINGS

SETTINGS is a JSON object (see the functions below). A line of stdin is a list of [prompt token ids, tokens to
generate]; the answer is a line {"seconds": ..., "output_tokens": ...}, and {"ready": VERSION} comes before the first.
Everything else that a program prints goes to stderr. Decoding is greedy, and past end tokens.

This file runs in peers' own environments, so it imports nothing at the top but the standard library. Peers' packages
are imported by name where they are needed: they are no dependencies of Distaff.
"""

import importlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Work = list[tuple[list[int], int]]
Generate = Callable[[Work], list[list[int]]]
"""Answers of exactly the wanted lengths."""

NUM_CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def vllm(settings: dict[str, Any]) -> tuple[str, Generate]:
    """Settings: model (a folder), dtype."""
    os.environ.update(
        VLLM_CPU_KVCACHE_SPACE="2",
        VLLM_CPU_OMP_THREADS_BIND=f"0-{NUM_CPUS - 1}",
        VLLM_CPU_NUM_OF_RESERVED_CPU="0",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_NO_USAGE_STATS="1",
        OMP_NUM_THREADS=str(NUM_CPUS),
    )
    package = importlib.import_module("vllm")
    model = package.LLM(
        settings["model"],
        dtype=settings["dtype"],
        max_model_len=1024,
        max_num_seqs=64,
        max_num_batched_tokens=4096,
        enable_prefix_caching=False,
        disable_log_stats=True,
    )

    def generate(work: Work) -> list[list[int]]:
        answers = model.generate(
            [package.TokensPrompt(prompt_token_ids=prompt) for prompt, _ in work],
            [
                package.SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
                for _, count in work
            ],
            use_tqdm=False,
        )
        return [list(answer.outputs[0].token_ids) for answer in answers]

    return package.__version__, generate


def openvino(settings: dict[str, Any]) -> tuple[str, Generate]:
    """Settings: model (an exported folder), precision (of arithmetic, or null for its own choice)."""
    numpy, core, genai = map(importlib.import_module, ("numpy", "openvino", "openvino_genai"))
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 2  # GB
    scheduler.max_num_seqs = 64
    scheduler.max_num_batched_tokens = 1024
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = False
    properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": NUM_CPUS, "PERFORMANCE_HINT": "LATENCY"}
    if settings["precision"]:
        properties["INFERENCE_PRECISION_HINT"] = settings["precision"]
    pipeline = genai.ContinuousBatchingPipeline(settings["model"], scheduler, "CPU", properties)

    def config(count: int) -> Any:
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = count
        config.ignore_eos = True
        config.do_sample = False
        return config

    def generate(work: Work) -> list[list[int]]:
        prompts = [core.Tensor(numpy.array([prompt], numpy.int64)) for prompt, _ in work]
        answers = pipeline.generate(prompts, [config(count) for _, count in work])
        return [list(answer.m_generation_ids[0]) for answer in answers]

    return genai.__version__, generate


def transformers(settings: dict[str, Any]) -> tuple[str, Generate]:
    """Settings: model (a folder), dtype. Left-padded batches of 16 in the order of arrival, 32 if all are alike."""
    torch, package = map(importlib.import_module, ("torch", "transformers"))
    torch.set_num_threads(NUM_CPUS)
    model = package.AutoModelForCausalLM.from_pretrained(settings["model"], dtype=getattr(torch, settings["dtype"]))
    model.eval()
    pad = 0
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = pad

    def run(work: Work) -> list[list[int]]:
        width, longest = max(len(prompt) for prompt, _ in work), max(count for _, count in work)
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt, _ in work])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt, _ in work])
        with torch.inference_mode():
            answers = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=longest, min_new_tokens=longest, do_sample=False
            )
        rows = answers[:, width:].tolist()
        return [row[:count] for row, (_, count) in zip(rows, work, strict=True)]

    def generate(work: Work) -> list[list[int]]:
        alike = len({(len(prompt), count) for prompt, count in work}) == 1
        size = 32 if alike else 16
        return [answer for first in range(0, len(work), size) for answer in run(work[first : first + size])]

    return package.__version__, generate


def llama(settings: dict[str, Any]) -> tuple[str, Generate]:
    """llama.cpp's server, over HTTP. Settings: server (its binary), model (a GGUF file), port."""
    slots, context = 32, 640
    url = f"http://127.0.0.1:{settings['port']}"
    flags = {
        "--model": settings["model"],
        "--host": "127.0.0.1",
        "--port": settings["port"],
        "--threads": NUM_CPUS,
        "--threads-batch": NUM_CPUS,
        "--parallel": slots,
        "--ctx-size": slots * context,
        "--batch-size": 2048,
        "--ubatch-size": 512,
        "--cache-ram": 0,
    }
    command = [settings["server"], *(str(part) for flag in flags.items() for part in flag)]
    # It ends when this process does: the parent ends the whole group.
    server = subprocess.Popen(command, stdout=sys.stderr, stderr=subprocess.STDOUT)
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                break
        except (urllib.error.URLError, OSError):
            if server.poll() is not None:
                raise RuntimeError(f"llama-server exited with {server.returncode}") from None
            time.sleep(0.1)

    def ask(item: tuple[list[int], int]) -> list[int]:
        body = {"prompt": item[0], "n_predict": item[1], "samplers": ["top_k"], "top_k": 1, "temperature": 0.0}
        body |= {"ignore_eos": True, "cache_prompt": False, "return_tokens": True}
        request = urllib.request.Request(
            f"{url}/completion", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=3600) as answer:
            return json.load(answer)["tokens"]

    pool = ThreadPoolExecutor(64)
    told = subprocess.run([settings["server"], "--version"], capture_output=True, text=True, check=True)
    version = (told.stdout + told.stderr).splitlines()[0].removeprefix("version: ")
    return version, lambda work: list(pool.map(ask, work))


def distaff(settings: dict[str, Any]) -> tuple[str, Generate]:
    """Settings: model, dtype, sampling (greedy or heavy), options (of LLM).

    Started as a module of the package, unlike the others.
    """
    from .bench import SAMPLING, Sampling
    from .startup import prepare_devices

    prepare_devices()
    from ..serving import LLM, Request, SamplingParams

    llm = LLM(settings["model"], dtype=settings["dtype"], **settings["options"])
    llm.engine.warm_up()
    drawing = SAMPLING[Sampling(settings["sampling"])]

    def generate(work: Work) -> list[list[int]]:
        streams = [
            llm.engine.submit(
                Request(
                    tuple(prompt),
                    SamplingParams(max_tokens=count, ignore_eos=True, seed=number, **drawing),
                    use_prefix_cache=False,
                )
            )
            for number, (prompt, count) in enumerate(work)
        ]
        llm.engine.run()
        return [[event.token_id for event in stream if event.token_id is not None] for stream in streams]

    return importlib.import_module("importlib.metadata").version("distaff"), generate


def main() -> None:
    # Only answers may reach the parent; libraries print to whatever is called stdout.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    load = {"vllm": vllm, "openvino": openvino, "transformers": transformers, "llama": llama, "distaff": distaff}
    version, generate = load[sys.argv[1]](json.loads(sys.argv[2]))
    answers.write(json.dumps({"ready": version}) + "\n")
    for line in sys.stdin:
        work: Work = [(prompt, count) for prompt, count in json.loads(line)]
        start = time.perf_counter()
        got = generate(work)
        seconds = time.perf_counter() - start
        wrong = [(len(answer), count) for answer, (_, count) in zip(got, work, strict=True) if len(answer) != count]
        if wrong:
            raise RuntimeError(f"answers of other lengths than asked for (got, asked): {wrong[:5]}")
        answers.write(json.dumps({"seconds": seconds, "output_tokens": sum(map(len, got))}) + "\n")


if __name__ == "__main__":
    main()
