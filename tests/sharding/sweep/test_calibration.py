"""Efficiencies in a file, and the chip that they are of."""

from dataclasses import replace
from pathlib import Path

import pytest

from distaff.backends.hardware import chip, read_chips
from distaff.sharding.sweep.calibration import calibration_yaml, read_calibration
from distaff.sharding.sweep.efficiency import DEFAULT
from distaff.sharding.sweep.errors import SweepError


def test_a_file_has_the_efficiencies_and_the_chip(tmp_path: Path) -> None:
    """So that `plan --hw here:8 --chips FILE --calibration FILE` needs one file."""
    here = replace(chip("h100"), name="here", sources={})
    path = tmp_path / "here.yaml"
    path.write_text(calibration_yaml(replace(DEFAULT, origin="points"), about={"mean_error": 0.1}, chip=here))
    assert read_calibration(path) == replace(DEFAULT, origin="points")
    assert read_chips(path)["here"] == here and read_chips(path)["v5e"] == chip("v5e")


@pytest.mark.parametrize("text", ["", "low: 1", "[", "low: {maths: fast}\nbest: {}\nhigh: {}"])
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "calibration.yaml"
    path.write_text(text)
    with pytest.raises(SweepError, match="`distaff sweep calibrate` writes such a file"):
        read_calibration(path)
