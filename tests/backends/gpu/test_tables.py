"""The tables of chips, block sizes and compiler options: complete, and with a reason where they promise one."""

from importlib.resources import files
from types import SimpleNamespace
from typing import Any

import jax
import pytest
import yaml

from distaff.backends.errors import UnsupportedError
from distaff.backends.gpu.blocks import decode_blocks, dense_blocks, prefill_blocks
from distaff.backends.gpu.chips import attached_chip, chip_named, chip_of
from distaff.backends.gpu.compiler_options import compiler_options

CHIPS = ("h100", "b200", "a100", "l4", "mi300x")


def table(name: str) -> dict[str, Any]:
    return yaml.safe_load(files("distaff.backends.gpu").joinpath(name).read_text())


@pytest.mark.parametrize("name", CHIPS)
@pytest.mark.parametrize("head_dim", [4, 64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_blocks_fit_into_shared_memory(name: str, head_dim: int, dtype: str) -> None:
    chip, width = chip_named(name), 2 if dtype == "bfloat16" else 4
    decode = decode_blocks(chip, head_dim, dtype)
    assert 2 * decode.stages * decode.keys * head_dim * width <= chip.shared_memory
    assert decode.keys & (decode.keys - 1) == 0 and decode.warps & (decode.warps - 1) == 0
    kinds = [
        kind(chip, head_dim, dtype, capped=capped)
        for kind in (prefill_blocks, dense_blocks)
        for capped in (False, True)
    ]
    for blocks in kinds:
        assert (2 * blocks.stages * blocks.keys + blocks.rows) * head_dim * width <= chip.shared_memory
        for number in (blocks.rows, blocks.keys, blocks.warps):
            assert number & (number - 1) == 0


def test_every_option_has_a_reason() -> None:
    options = table("compiler_options.yaml")
    assert {"all", "cuda", "rocm", "attached", "ahead"} <= set(options)
    for section in options.values():
        for name, entry in section.items():
            assert name.startswith("xla_gpu_") and set(entry) == {"value", "why"} and len(entry["why"]) > 20


def test_options_follow_the_platform() -> None:
    nvidia, amd = (compiler_options(chip_named(name), attached=True) for name in ("h100", "mi300x"))
    assert nvidia["xla_gpu_enable_triton_gemm"] is False
    assert "xla_gpu_enable_triton_gemm" not in amd and amd["xla_gpu_autotune_level"] == 4


def test_devices_are_recognised_by_their_kind() -> None:
    assert chip_of(SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")).name == "h100"
    assert chip_of(SimpleNamespace(device_kind="gfx942:sramecc+:xnack-")).name == "mi300x"
    other = chip_of(SimpleNamespace(device_kind="NVIDIA GeForce RTX 4090", compute_capability="8.9", core_count=128))
    assert (other.platform, other.capability, other.cores) == ("cuda", "8.9", 128)


def test_a_gpu_that_is_too_old_is_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(device_kind="Tesla T4", compute_capability="7.5", core_count=40)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [old])
    with pytest.raises(UnsupportedError, match="Tesla T4 has compute capability 7.5, the kernels need 8.0"):
        attached_chip()
