"""A sweep in a folder."""

from pathlib import Path

from distaff.sharding.sweep.store import load, save
from distaff.sharding.sweep.sweep import plan

from .asked import request


def test_a_sweep_is_kept_in_a_folder(tmp_path: Path) -> None:
    import pyarrow.parquet as parquet

    found = plan(request(axes=("data", "tensor")))
    written = save(found, tmp_path)
    assert [path.name for path in written] == ["sweep.json", "rows.csv", "rows.parquet"]
    again = load(tmp_path)
    assert again.rows == found.rows and again.row(found.rows[0]["id"][:6]) == found.rows[0]
    table = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [row["id"] for row in table] == [row["id"] for row in found.rows]
    assert table[0]["decode_ms.weights"] == found.rows[0]["decode_ms"]["weights"]
