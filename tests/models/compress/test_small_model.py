"""What small_model.py leaves is a model that is read, and that has learnt something."""

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from distaff.models.checkpoints import open_checkpoint
from distaff.models.compress import parse_scheme, quantizer
from distaff.models.decoder import flatten, init_weights
from distaff.models.families import config_from_hf

from . import small_model


@pytest.mark.slow
def test_a_model_is_trained_and_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [Path(small_model.__file__).read_text(encoding="utf-8")] * 2
    monkeypatch.setattr(small_model, "modules", lambda: (sources, sources[:1]))
    monkeypatch.setattr(small_model, "LENGTH", 32)
    monkeypatch.setattr(small_model, "RECIPE", replace(small_model.RECIPE, steps=20, rows=2))
    monkeypatch.setattr(small_model, "CONFIG", {**small_model.CONFIG, "num_hidden_layers": 1, "vocab_size": 400})
    small_model.main(tmp_path)
    losses = [float(line.rpartition(" ")[2]) for line in capsys.readouterr().out.splitlines()]
    assert losses[1] < losses[0] < np.log(400)
    checkpoint = open_checkpoint(tmp_path / "model")
    config = config_from_hf(checkpoint.hf_config, source="small")
    quantizer(parse_scheme("int4:128"), config)
    found = flatten(checkpoint.load_weights(config, dtype=jnp.float32))
    begun = flatten(init_weights(config, seed=0, dtype=jnp.float32))
    assert all(not np.array_equal(leaf, begun[path]) for path, leaf in found.items())
    text = (tmp_path / "held_out.txt").read_text(encoding="utf-8")
    tokenizer = checkpoint.tokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace(small_model.END, "") != ""
