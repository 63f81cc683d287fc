"""The golden files against the oracle itself: remade and compared, and Distaff on models that are not committed.

`scripts/test --oracle` remakes the files into the folder DISTAFF_GOLDEN, and sets DISTAFF_ORACLE_PYTHON to a Python
with torch and transformers.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from .harness import CASES, FOREIGN, FP32_BOUND, MIN_GAP, Golden, Text

if not {"DISTAFF_GOLDEN", "DISTAFF_ORACLE_PYTHON"} <= os.environ.keys():
    pytest.skip("needs torch and transformers: scripts/test --oracle", allow_module_level=True)

COMMITTED = Path(__file__).parent
REMADE = Path(os.environ["DISTAFF_GOLDEN"])
OTHER_SEED = 11
SAME_LOGITS = 5e-5
"""The oracle's own rounding differs between machines; make.py keeps models whose logits it moves by less than 2e-5."""


def run_oracle(script: str, *args: str | Path) -> None:
    """Runs a script of this folder where torch and transformers are."""
    command = [os.environ["DISTAFF_ORACLE_PYTHON"], str(COMMITTED / script), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("others")
    run_oracle("make.py", "--out", folder, "--seed", str(OTHER_SEED))
    return folder


def test_every_case_is_committed() -> None:
    assert {file.parent.name for file in COMMITTED.glob("*/expected.npz")} == {
        folder.name for folder in REMADE.iterdir()
    }


@pytest.mark.parametrize("case", CASES)
def test_remade_files_are_those_committed(case: str) -> None:
    committed, made = COMMITTED / case, REMADE / case
    assert sorted(file.name for file in made.iterdir()) == sorted(file.name for file in committed.iterdir())
    assert json.loads((made / "config.json").read_text()) == json.loads((committed / "config.json").read_text())
    for file in committed.glob("*.safetensors"):
        old, new = load_file(file), load_file(made / file.name)
        assert old.keys() == new.keys()
        for name in old:
            assert old[name].dtype == new[name].dtype, name
            assert old[name].tobytes() == new[name].tobytes(), name
    old, new = Golden(committed), Golden(made)
    assert (new.tokens, new.prompt_len) == (old.tokens, old.prompt_len)
    np.testing.assert_allclose(new.logits, old.logits, rtol=0, atol=SAME_LOGITS)


@pytest.mark.parametrize("case", CASES)
def test_live_logits(case: str, others: Path) -> None:
    """Other weights and prompts than those committed, straight from `transformers`."""
    golden = Golden(others / case)
    assert golden.tokens != Golden(COMMITTED / case).tokens
    text = Text(golden.config, golden.weights())
    found = np.concatenate([text.feed(golden.tokens[:29]), text.feed(golden.tokens[29:])])
    assert np.abs(found - golden.logits).max() <= FP32_BOUND


def test_remade_checkpoints_of_other_libraries(tmp_path: Path) -> None:
    """Those whose libraries are here: GPTQ's and AWQ's want another torch."""
    run_oracle("make_foreign.py", "--out", tmp_path)
    names = {file.parent.name for file in FOREIGN.glob("*/expected.npz")}
    assert {folder.name for folder in tmp_path.iterdir()} == {n for n in names if not n.startswith(("gptq", "awq"))}
    for made in tmp_path.iterdir():
        committed = FOREIGN / made.name
        for file in ("config.json", "model.safetensors"):
            assert (made / file).read_bytes() == (committed / file).read_bytes(), made.name
        old, new = Golden(committed), Golden(made)
        assert new.tokens == old.tokens
        np.testing.assert_allclose(new.logits, old.logits, rtol=0, atol=SAME_LOGITS)
        assert (new.own is None) == (old.own is None)
        if old.own is not None and new.own is not None:
            # A number in the middle may be rounded either way.
            assert np.abs(new.own - old.own).mean() <= 0.1 * np.abs(old.own - old.logits).mean()


def test_remade_smollm2_tokens(smollm2: Path, tmp_path: Path) -> None:
    run_oracle("make_smollm2.py", "--gguf", smollm2, "--out", tmp_path / "made.json")
    made = json.loads((tmp_path / "made.json").read_text("utf-8"))
    committed = json.loads((COMMITTED / "smollm2_instruct.json").read_text("utf-8"))
    assert made["gguf_sha256"] == committed["gguf_sha256"]
    for new, old in zip(made["rows"], committed["rows"], strict=True):
        assert new["prompt_token_ids"] == old["prompt_token_ids"]
        clear = next((i for i, gap in enumerate(old["gaps"]) if gap < MIN_GAP), len(old["gaps"]))
        assert new["token_ids"][:clear] == old["token_ids"][:clear]
