"""JAX's own kernels compile, and cost what they were found to cost before."""

import pytest

from distaff.backends.static_cost import analyze
from distaff.backends.tpu import peers
from distaff.backends.tpu.peers import causal_flops, page_table

pytest.importorskip("libtpu", reason="the TPU compiler is in the extra `tpu`")

# Microseconds of computing and of HBM, 32 query and 8 kv heads of 128 (flash: 8 and 8), libtpu 0.0.52. They were taken
# with another program that reads the same dumps, and hold within what the ends of pipelines cost.
KNOWN = [
    ("splash_attention", {"length": 4096}, "v6e:2x2", 718, 143),
    ("flash_attention", {"length": 4096, "num_heads": 8}, "v5e:2x2", 323, 102),
    ("paged_attention", {"batch": 64, "context": 8192, "page": 128}, "v6e:2x2", 3112, 1310),
]


@pytest.mark.parametrize(("name", "arguments", "topology", "compute", "hbm"), KNOWN, ids=[case[0] for case in KNOWN])
def test_a_peer_costs_what_is_known(
    name: str, arguments: dict[str, int], topology: str, compute: int, hbm: int
) -> None:
    case = getattr(peers, name)(**arguments)
    (kernel,) = analyze(case.function, case.abstract_args, topology, work=case.work).kernels
    assert kernel.compute_seconds * 1e6 == pytest.approx(compute, rel=0.02)
    assert kernel.hbm_seconds is not None and kernel.hbm_seconds * 1e6 == pytest.approx(hbm, rel=0.01)
    print(f"{name} on {topology}: {kernel.bundles} bundles, MXU {kernel.mxu_busy:.0%} busy")


@pytest.mark.slow
@pytest.mark.parametrize("kv_dtype", ["bfloat16", "float8_e4m3fn"])
def test_the_ragged_kernel_costs_what_is_known(kv_dtype: str) -> None:
    case = peers.ragged_paged_attention(batch=64, context=4096, page=128, kv_dtype=kv_dtype)
    (kernel,) = analyze(case.function, case.abstract_args, "v6e:2x2", work=case.work).kernels
    expected = {"bfloat16": 1023, "float8_e4m3fn": 1289}[kv_dtype]
    assert kernel.compute_seconds * 1e6 == pytest.approx(expected, rel=0.02)


def test_causal_work_is_that_of_the_pairs_seen() -> None:
    assert causal_flops(4, num_heads=3, head_dim=8) == 4 * 8 * 3 * (1 + 2 + 3 + 4)


def test_every_page_is_used_once_and_rows_are_scattered() -> None:
    table = page_table(4, 64, 16)
    assert table.shape == (4, 4) and sorted(table.ravel()) == list(range(16))
    assert (abs(table[:, 1:] - table[:, :-1]) > 1).all()
