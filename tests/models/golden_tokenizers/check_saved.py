# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownMemberType=false
"""Do the tokenizer folders that Distaff saved mean the same to transformers?

test_tokenizer.py runs it in the oracle environment:

    python check_saved.py FOLDER...     each with an expected.json: {"texts", "ids", "decoded", "eos_ids"}
"""

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer, GenerationConfig


def check(folder: Path) -> None:
    """Raise AssertionError where transformers reads the folder otherwise."""
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text, ids, decoded in zip(expected["texts"], expected["ids"], expected["decoded"], strict=True):
        assert tokenizer.encode(text) == ids, (folder.name, text)
        assert tokenizer.decode(ids, skip_special_tokens=True) == decoded, (folder.name, text)
    if expected["eos_ids"]:
        assert GenerationConfig.from_pretrained(folder).eos_token_id == expected["eos_ids"], folder.name


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        check(Path(argument))
