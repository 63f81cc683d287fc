"""Makes the golden checkpoints: tiny random models of every family, saved and computed by `transformers`.

Runs in the oracle environment (transformers 5, torch on CPU), never in Distaff's own:

    python tests/golden/make.py --out DIR [--only NAME ...] [--seed N] [--again DIR]

One folder per case: `config.json` and `model*.safetensors` as `transformers` writes them (or, where the case says so,
`config.json` as published checkpoints of that family have it), and `expected.npz`:

    tokens      int32 [T]     prompt, then the greedy continuation (none for dynamic scaling, see below)
    prompt_len  int32 []
    logits      float32 [T, V]  one forward pass over `tokens`, fp32 arithmetic, eager attention
    bf16_error  float32 []    root mean square of what the logits change by when `transformers` computes in bfloat16

Weights are drawn per tensor from (seed, tensor name), rounded to bfloat16 and saved so: fp32 and bf16 runs read the
same numbers. Every norm scale, bias, sink and correction is random, so that each of them matters. The scales are chosen
so that logits have a standard deviation of at least 1. Of several draws the first is taken whose greedy decisions are
all clear (top-2 gap >= MIN_GAP) and do not run into a short loop, and whose logits hardly change when `transformers`
computes in float64: a model that magnifies rounding errors tells nothing about another implementation.

Dynamic scaling recomputes its frequencies as the sequence grows in `transformers`, so only one forward pass at the
maximum length (max_position_embeddings * factor) is well defined; that case has a prompt of that length and no greedy
tokens. Longrope switches once, at the original length; its prompt is longer than that, so all its tokens are well
defined.
"""

import argparse
import json
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import transformers
from cases import CASES, Case
from transformers import AutoModelForCausalLM, PreTrainedModel

PROMPT_LEN = 48
MIN_GAP = 0.03
MIN_DISTINCT = 8
MAX_NOISE = 2e-5  # of the oracle's own logits, against the same model in float64
DRAWS = 200
LOGIT_SCALE = 2.0


def _normal(seed: int, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    random = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    return torch.from_numpy(random.standard_normal(shape, dtype=np.float32))


def _draw(name: str, shape: tuple[int, ...], seed: int, *, model_type: str, tied: bool) -> torch.Tensor:
    """A random value for one parameter; the scale follows from what the tensor does."""
    noise = _normal(seed, name, shape)
    leaf = name.rsplit(".", 1)[-1]
    if "norm" in name and leaf == "weight":
        if model_type.startswith("gemma"):
            # Used as 1 + scale. Larger after each sublayer, or the embedding (times sqrt(D)) would outweigh them all.
            return (1.0 if "post_" in name else 0.3) + 0.4 * noise
        return (1.5 if ("q_norm" in name or "k_norm" in name) else 1.0) + 0.4 * noise
    if leaf == "sinks":
        return 1.0 + noise
    if leaf.endswith("bias"):
        return 0.4 * noise
    if "embed_positions" in name:
        return 0.7 * noise
    if "embed_tokens" in name:
        scale = 2.0 if model_type.startswith("gemma") else LOGIT_SCALE
        return noise * (scale / shape[-1] ** 0.5 if tied else 0.7)
    if "lm_head" in name:
        return noise * LOGIT_SCALE / shape[-1] ** 0.5
    fan_in = shape[-2] if model_type == "gpt_oss" and len(shape) == 3 else shape[-1]
    gain = 1.6 if any(part in name for part in ("q_proj", "k_proj", "qkv_proj", "router", "mlp.gate.")) else 1.2
    return noise * gain / fan_in**0.5


def build(case: Case, seed: int) -> PreTrainedModel:
    """The model of one case with weights drawn from `seed`, rounded to bfloat16 values, in float32."""
    config = getattr(transformers, case.config)(**json.loads(json.dumps(dict(case.args))))
    model = (
        AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
        .float()
        .eval()
    )
    tied = bool(getattr(config, "tie_word_embeddings", False))
    persistent = model.state_dict(keep_vars=True)
    seen: set[int] = set()
    with torch.no_grad():
        for name, tensor in persistent.items():
            if id(tensor) in seen or not tensor.is_floating_point():
                continue
            seen.add(id(tensor))
            value = _draw(name, tuple(tensor.shape), seed, model_type=config.model_type, tied=tied)
            for key, gain in case.gains.items():
                value = value * gain if key in name else value
            tensor.copy_(value.to(torch.bfloat16))
    return model


def save(model: PreTrainedModel, case: Case, folder: Path) -> None:
    """Write the checkpoint the way `transformers` does, then the published style of config.json where asked."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="12KB" if case.shards else "5GB")
    model.float()
    (folder / "generation_config.json").unlink(missing_ok=True)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("transformers_version", None)
    if case.published is not None:
        for key, value in case.published.items():
            if value is None:
                config.pop(key, None)
            else:
                config[key] = None if value is ... else value
        config.setdefault("torch_dtype", config.pop("dtype", "bfloat16"))
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


@torch.no_grad()
def expected(model: PreTrainedModel, prompt: list[int], greedy: int) -> dict[str, np.ndarray]:
    """Prompt and greedy continuation, with the logits of one forward pass over the whole; no cache anywhere."""
    tokens = list(prompt)
    for _ in range(greedy):
        tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
    return {
        "tokens": np.asarray(tokens, np.int32),
        "prompt_len": np.asarray(len(prompt), np.int32),
        "logits": logits.float().numpy(),
    }


@torch.no_grad()
def noise(model: PreTrainedModel, result: Mapping[str, np.ndarray]) -> float:
    """Largest difference of the logits from those computed in float64."""
    exact = model.double()(torch.tensor([result["tokens"].tolist()]), use_cache=False).logits[0].numpy()
    model.float()
    return float(np.abs(exact - result["logits"]).max())


@torch.no_grad()
def bf16_error(model: PreTrainedModel, result: Mapping[str, np.ndarray]) -> np.ndarray:
    """Root mean square of the difference of the logits from those computed in bfloat16."""
    coarse = model.to(torch.bfloat16)(torch.tensor([result["tokens"].tolist()]), use_cache=False).logits[0]
    model.float()
    return np.sqrt(np.square(coarse.float().numpy() - result["logits"]).mean())


def unclear(result: Mapping[str, np.ndarray]) -> str | None:
    """Why these decisions cannot serve as an oracle, or None."""
    logits, start = result["logits"], int(result["prompt_len"])
    if logits.std() < 1.0:
        return f"logits have a standard deviation of {logits.std():.2f}"
    if len(result["tokens"]) == start:
        return None
    top = np.sort(logits[start - 1 : -1], axis=-1)
    gap = float((top[:, -1] - top[:, -2]).min())
    if gap < MIN_GAP:
        return f"top-2 gap {gap:.3f}"
    distinct = len(set(result["tokens"][start:].tolist()))
    return f"{distinct} distinct tokens" if distinct < MIN_DISTINCT else None


def make(name: str, out: Path, seed: int, again: Path | None = None) -> None:
    """Make one case under `out`, trying draws in order until its decisions are clear.

    With `again`, a folder of cases, the draw is the one with the prompt that stands there: which draw is clear by a
    hair depends on the rounding of the machine.
    """
    case, folder = CASES[name], out / name
    kept: list[int] | None = None
    if again is not None:
        before = np.load(again / name / "expected.npz")
        kept = before["tokens"][: int(before["prompt_len"])].tolist()
    random = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode()), 1]))
    reason: str | None = ""
    for draw in range(DRAWS):
        prompt = random.integers(4, case.args["vocab_size"], PROMPT_LEN).tolist()
        if kept is not None and prompt != kept:
            reason = f"not the prompt of {again}"
            continue
        model = build(case, seed + 1000 * draw)
        result = expected(model, prompt, case.greedy)
        reason = None if kept is not None else unclear(result)
        if kept is None and reason is None and (error := noise(model, result)) > MAX_NOISE:
            reason = f"rounding errors of {error:.1e}"
        if reason is None:
            break
    if reason is not None:
        raise SystemExit(f"{name}: no clear draw in {DRAWS}, the last one: {reason}")
    save(model, case, folder)
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    again = expected(loaded, prompt, case.greedy)
    if not np.array_equal(again["tokens"], result["tokens"]) or np.abs(again["logits"] - result["logits"]).max() > 1e-5:
        raise SystemExit(f"{name}: what was saved computes something else than what was built")
    np.savez_compressed(folder / "expected.npz", **again, bf16_error=bf16_error(loaded, again))
    size = sum(f.stat().st_size for f in folder.iterdir()) / 1024
    print(f"{name:18} draw {draw:2}  std {result['logits'].std():.2f}  {size:.0f} KiB", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=sorted(CASES), metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", type=Path, metavar="DIR", help="make the draws of the cases that are in DIR")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name in args.only or CASES:
        make(name, args.out, args.seed, args.again)


if __name__ == "__main__":
    main()
