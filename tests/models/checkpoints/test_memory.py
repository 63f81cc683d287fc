"""Peak anonymous memory, measured in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from distaff.models.checkpoints import convert, resolve_model

SLACK = 200 * 2**20

MEASURE = """
import json, sys, threading, time
from pathlib import Path
import jax, jax.numpy as jnp
from distaff.models.checkpoints import open_checkpoint, save
from distaff.models.decoder import flatten
from distaff.models.families import config_from_hf
import distaff.models.checkpoints.gguf_writer

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024

task, path, out = sys.argv[1:]
jax.devices()
level = peak = anonymous()
done = threading.Event()

def watch():
    global peak
    while not done.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.001)

threading.Thread(target=watch, daemon=True).start()
checkpoint = open_checkpoint(Path(path))
config = config_from_hf(checkpoint.hf_config)
place = None
if task.startswith("load:"):
    from distaff.backends.reference import ReferenceBackend
    from distaff.sharding.shard import shard_backends
    place = shard_backends(ReferenceBackend(), config, task.removeprefix("load:"), "float32")[0].place
weights = checkpoint.load_weights(config, dtype="float32", place=place)
if not task.startswith("load"):
    save(weights, config=config, source=checkpoint, destination=Path(out), format=task)
done.set()
peak = max(peak, anonymous())
flat = flatten(weights)
# The largest tensor of the file: a leaf holds one tensor for each layer.
largest = max(leaf.nbytes // (len(leaf) if name.startswith("segments") else 1) for name, leaf in flat.items())
print(json.dumps({"peak": peak - level, "weights": sum(leaf.nbytes for leaf in flat.values()), "largest": largest}))
"""


def _measure(task: str, path: Path, out: Path) -> dict[str, int]:
    process = subprocess.run(
        [sys.executable, "-c", MEASURE, task, str(path), str(out)], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout.splitlines()[-1])


def _check(found: dict[str, int]) -> None:
    allowed = found["weights"] + found["largest"] + SLACK
    assert found["weights"] > SLACK  # or holding everything twice would go unnoticed
    assert found["weights"] * 0.9 < found["peak"] < allowed, {name: f"{n / 2**20:.0f} MB" for name, n in found.items()}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of 110 million parameters in bfloat16, in three shards: 440 MB in float32."""
    folder = tmp_path_factory.mktemp("sharded")
    layers, width, inner, heads, vocab = 4, 1024, 6144, 16, 10240
    config = {
        "model_type": "llama", "vocab_size": vocab, "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    for i in range(layers):
        name = f"model.layers.{i}."
        shapes |= {f"{name}self_attn.{x}_proj.weight": (width, width) for x in "qkvo"}
        shapes |= {f"{name}mlp.{x}_proj.weight": (inner, width) for x in ("gate", "up")}
        shapes |= {f"{name}mlp.down_proj.weight": (width, inner)}
        shapes |= {f"{name}{x}_layernorm.weight": (width,) for x in ("input", "post_attention")}
    noise = np.random.default_rng(0).standard_normal(inner * 2048, np.float32).astype(ml_dtypes.bfloat16)
    weight_map: dict[str, str] = {}
    for shard in range(3):
        file = f"model-{shard + 1:05}-of-00003.safetensors"
        names = sorted(shapes)[shard::3]
        save_file({name: noise[: np.prod(shapes[name])].reshape(shapes[name]) for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_loading_a_sharded_folder(sharded: Path, tmp_path: Path) -> None:
    _check(_measure("load", sharded, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tensor=4", "tensor-2d:tensor=2,tensor2=4"])
def test_loading_parts(sharded: Path, tmp_path: Path, layout: str) -> None:
    """Eight virtual devices have this process's memory: parts and a block are all that is held."""
    _check(_measure(f"load:{layout}", sharded, tmp_path))


def test_loading_gguf(sharded: Path, tmp_path: Path) -> None:
    convert(str(sharded), tmp_path / "out.gguf", to="gguf", dtype="q8_0")
    _check(_measure("load", tmp_path / "out.gguf", tmp_path))


def test_loading_orbax(sharded: Path, tmp_path: Path) -> None:
    convert(str(sharded), tmp_path / "out", to="orbax")
    _check(_measure("load", tmp_path / "out", tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("format", ["safetensors", "orbax"])
def test_saving(sharded: Path, tmp_path: Path, format: str) -> None:
    _check(_measure(format, sharded, tmp_path / "out"))


@pytest.mark.slow
def test_loading_smollm2(tmp_path: Path) -> None:
    path = resolve_model("smollm2-135m-instruct", offline=False)
    found = _measure("load", Path(str(path)), tmp_path)
    assert found["weights"] == 538_060_032
    _check(found)
