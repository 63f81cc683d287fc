"""A model of 512 inputs, trained here on the source of Python's standard library: its weights were never 4-bit.

`python -m tests.models.compress.small_model FOLDER` leaves the model in FOLDER/model, and beside it calibration.txt, of
the text that it was trained on, and held_out.txt, of modules that it never saw. An interrupted training goes on.
"""

import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from distaff.models.checkpoints.export import outgoing_tensors
from distaff.models.checkpoints.json_file import write_object
from distaff.models.checkpoints.safetensors_writer import write_safetensors
from distaff.models.compress.distill import Leaves, Recipe, StepReport, Training
from distaff.models.compress.forward import read
from distaff.models.compress.layers import LayerRuns
from distaff.models.compress.packing import PADDING, pack
from distaff.models.compress.training import Checkpoints, Progress, train
from distaff.models.decoder import Weights, flatten, init_weights, unflatten
from distaff.models.families import config_from_hf

END = "<|endoftext|>"
HELD_OUT = 12
"""One module of so many is not trained on."""
SAMPLE = 60_000
"""Characters of the texts that are left beside the model."""
RECIPE = Recipe(steps=240, rows=16, learning_rate=3e-3, warmup=0.1, decay=0.1)
LENGTH = 256
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 2048,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "torch_dtype": "float32",
}


def modules() -> tuple[list[str], list[str]]:
    """Sources to train on, and others."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    kept = [text for number, text in enumerate(texts) if number % HELD_OUT]
    return kept, texts[::HELD_OUT]


def trained_tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def update(
    training: Training, frozen: Leaves, teacher: Weights, tokens: Int[Array, "B S"], documents: Int[Array, "B S"]
) -> tuple[Training, StepReport]:
    """Towards the next token of each text, where distillation goes towards a teacher's expectation."""
    config = LayerRuns.of(config_from_hf(CONFIG, source="small"))

    def loss(leaves: Leaves) -> Float[Array, ""]:
        logits = read(config, unflatten({**frozen, **leaves}), tokens, documents).logits[:, :-1]
        costs = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        real = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] != PADDING)
        return jnp.where(real, costs, 0).sum() / real.sum()

    cost, slopes = jax.value_and_grad(loss)(training.leaves)
    changes, state = RECIPE.optimizer().update(slopes, training.optimizer, training.leaves)
    leaves: Any = optax.apply_updates(training.leaves, changes)
    return Training(leaves, state, training.step + 1), StepReport(cost, jnp.zeros(()), optax.tree.norm(slopes))


def sampled(texts: list[str]) -> Iterator[str]:
    """The beginning of each text, SAMPLE characters in all."""
    for text in texts:
        yield text[: SAMPLE // len(texts)]


def main(folder: Path) -> None:
    texts, others = modules()
    model = folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    tokenizer = trained_tokenizer(texts)
    tokenizer.save(str(model / "tokenizer.json"))
    write_object(model / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END})
    (folder / "calibration.txt").write_text("".join(sampled(texts[::HELD_OUT])), encoding="utf-8")
    (folder / "held_out.txt").write_text("".join(sampled(others)), encoding="utf-8")
    rows = pack([tokenizer.encode(text).ids for text in texts], LENGTH)
    config = LayerRuns.of(config_from_hf(CONFIG, source="small"))
    leaves = flatten(init_weights(config, seed=0, dtype=jnp.float32))

    def progress(done: Progress, leaves: Leaves) -> None:
        if done.done % 10 == 0:
            print(f"step {done.done} of {done.total}, loss {done.loss:.3f}", flush=True)

    state = Checkpoints(folder / "training", {"steps": RECIPE.steps})
    made = train(RECIPE, update, leaves, {}, rows, checkpoints=state, progress=progress)
    write_safetensors(outgoing_tensors(unflatten(made), config), model)
    write_object(model / "config.json", CONFIG)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
