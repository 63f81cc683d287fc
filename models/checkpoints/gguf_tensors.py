"""Tensors of a GGUF file under the names and in the layouts of Hugging Face."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, ShapeMismatchError
from .base import NamedTensors, TensorInfo
from .gguf_blocks import BLOCK_TYPES, PartOfFile
from .gguf_file import PLAIN, GGUFFile, can_dequantize
from .gguf_names import CONFIG_TENSORS, Rule, architecture_named
from .kept import Form
from .runs import Box, Runs, whole


@dataclass(frozen=True)
class _Mapped:
    """A tensor under its Hugging Face name. Both functions take a first and a last row and the bounds within them;
    `made_of` are the file's tensors that it is read from."""

    info: TensorInfo
    made_of: tuple[str, ...]
    read: Callable[[int, int, Box], np.ndarray]
    planned: Callable[[int, int, Box], list[Runs]]


class GGUFTensors:
    """Tensors of a GGUF file under their Hugging Face names, with llama.cpp's changes undone."""

    def __init__(self, file: "GGUFFile | PartOfFile", hf_config: Mapping[str, Any]) -> None:
        self._file, self._hf_config = file, hf_config
        self._heads = {"attn_q": hf_config["num_attention_heads"], "attn_k": hf_config["num_key_value_heads"]}
        self._mapped = self._map(
            architecture_named(file.metadata.get("general.architecture"), source=str(file.path)).rules
        )

        self._infos = {name: mapped.info for name, mapped in self._mapped.items()}

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return self._infos

    @property
    def local(self) -> bool:
        return isinstance(self._file.path, Path)

    def read_rows(self, name: str, start: int, stop: int, within: Box = ()) -> np.ndarray:
        return self._mapped[name].read(start, stop, within or whole(self._infos[name].shape[1:]))

    def planned(self, name: str, start: int, stop: int, within: Box = ()) -> list[Runs]:
        return self._mapped[name].planned(start, stop, within or whole(self._infos[name].shape[1:]))

    def form(self, name: str) -> Form | str | None:
        """See StoredNumbers."""
        kinds = {self._file.tensors[each].type for each in self._mapped[name].made_of}
        if len(kinds) > 1:
            return "its rows are stored in several ways"
        (kind,) = kinds
        if kind in PLAIN:
            return None
        if kind not in BLOCK_TYPES:
            return f"no product takes {kind.name}"
        width = self._file.tensors[self._mapped[name].made_of[0]].shape[-1]
        return BLOCK_TYPES[kind].form(width)

    def parts(self, form: Form, part: str) -> NamedTensors:
        """See StoredNumbers."""
        assert isinstance(self._file, GGUFFile)
        names = {each for name, mapped in self._mapped.items() if self.form(name) == form for each in mapped.made_of}
        return GGUFTensors(PartOfFile(self._file, names, part), self._hf_config)

    def _map(self, rules: tuple[Rule, ...]) -> dict[str, _Mapped]:
        by_name = {rule.gguf: rule for rule in rules}
        mapped: dict[str, _Mapped] = {}
        for name in self._file.tensors:
            if name in CONFIG_TENSORS:
                continue
            pattern, numbers = _pattern(name)
            rule = next((rule for rule in by_name.values() if pattern in rule.gguf), None)
            if rule is None:
                mapped[name] = self._plain(name)  # the assembler reports it as extra, under its own name
            elif rule.layout == "experts":
                for expert in range(self._file.tensors[name].shape[0]):
                    hf = rule.hf.format(expert=expert, **numbers)
                    mapped[hf] = self._expert(hf, name, expert)
            elif rule.layout == "gate_up":
                gate, up = (part.format(**numbers) for part in rule.gguf)
                if name == gate:
                    mapped[rule.hf.format(**numbers)] = self._gate_up(rule.hf.format(**numbers), gate, up)
            else:
                hf = rule.hf.format(**numbers)
                mapped[hf] = self._one(hf, name, rule)
        return mapped

    def _one(self, hf: str, name: str, rule: Rule) -> _Mapped:
        match rule.layout:
            case "interleaved_heads":
                return self._heads_in_order(hf, name)
            case "norm_plus_one":
                one = self._plain(name, hf)
                return replace(one, read=lambda *rows: np.subtract(one.read(*rows), 1, dtype=np.float32))
            case "transposed":
                one = self._plain(name, hf)
                *lead, a, b = one.info.shape
                info = self._info(hf, name, (*lead, b, a))
                return _Mapped(
                    info,
                    one.made_of,
                    lambda start, stop, within: one.read(start, stop, _swapped(within)).swapaxes(-1, -2),
                    lambda start, stop, within: one.planned(start, stop, _swapped(within)),
                )
            case _:
                return self._plain(name, hf)

    def _info(self, hf: str, name: str, shape: tuple[int, ...]) -> TensorInfo:
        tensor = self._file.tensors[name]
        return TensorInfo(hf, shape, tensor.type.name, tensor.file, can_dequantize(tensor.type))

    def _plain(self, name: str, hf: str | None = None) -> _Mapped:
        info = self._info(hf or name, name, self._file.tensors[name].shape)
        return _Mapped(
            info,
            (name,),
            lambda *rows: self._file.read_rows(name, *rows),
            lambda *rows: [self._file.runs(name, *rows)],
        )

    def _expert(self, hf: str, name: str, expert: int) -> _Mapped:
        """One entry of a stacked tensor [E, rows, ...]."""
        info = self._info(hf, name, self._file.tensors[name].shape[1:])
        return _Mapped(
            info,
            (name,),
            lambda *rows: self._file.read_rows(name, *rows, expert=expert),
            lambda *rows: [self._file.runs(name, *rows, expert=expert)],
        )

    def _heads_in_order(self, hf: str, name: str) -> _Mapped:
        """llama.cpp stores each head's rows as pairs (i, i + H/2) next to each other; Hugging Face as two halves."""
        info = self._info(hf, name, self._file.tensors[name].shape)
        heads = self._heads[name.split(".")[2]]
        width, rest = divmod(info.shape[0], heads)
        if rest or width % 2:
            raise ShapeMismatchError(
                f"{info.file}: tensor {name!r}: found {info.shape[0]} rows, expected an even number for each "
                f"of {heads} heads"
            )

        def heads_of(start: int, stop: int) -> tuple[int, int]:
            return start // width, -(-stop // width)

        def read(start: int, stop: int, within: Box) -> np.ndarray:
            head, last = heads_of(start, stop)
            rows = self._file.read_rows(name, head * width, last * width, within)
            ordered = rows.reshape(last - head, width // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
            return ordered[start - head * width : stop - head * width]

        def planned(start: int, stop: int, within: Box) -> list[Runs]:
            head, last = heads_of(start, stop)
            return [self._file.runs(name, head * width, last * width, within)]

        return _Mapped(info, (name,), read, planned)

    def _gate_up(self, hf: str, gate: str, up: str) -> _Mapped:
        """gpt-oss: [E, F, D] and [E, F, D] become [E, D, 2F] with columns interleaved; biases [E, F] become [E, 2F]."""
        if up not in self._file.tensors:
            raise CheckpointError(f"{self._file.path}: tensor {gate!r} has no {up!r} beside it; fetch the file again")
        shape = self._file.tensors[gate].shape
        if self._file.tensors[up].shape != shape:
            raise ShapeMismatchError(
                f"{self._file.path}: tensor {up!r}: found shape {list(self._file.tensors[up].shape)}, expected "
                f"{list(shape)} as {gate!r} has"
            )

        def stored(within: Box) -> Box:
            *wide, (first, last) = within
            return ((first // 2, -(-last // 2)), *wide)

        def read(start: int, stop: int, within: Box) -> np.ndarray:
            pair = (self._file.read_rows(name, start, stop, stored(within)) for name in (gate, up))
            rows = np.stack([np.asarray(part) for part in pair], axis=2)  # [E, F, 2, D]
            both = rows.reshape(stop - start, -1, *rows.shape[3:]).swapaxes(1, -1)
            first, last = within[-1]
            return both[..., first % 2 : first % 2 + last - first]

        def planned(start: int, stop: int, within: Box) -> list[Runs]:
            return [self._file.runs(name, start, stop, stored(within)) for name in (gate, up)]

        info = self._info(hf, gate, (shape[0], *shape[2:], 2 * shape[1]))
        return _Mapped(info, (gate, up), read, planned)


def _swapped(within: Box) -> Box:
    *lead, one, other = within
    return (*lead, other, one)


def _pattern(name: str) -> tuple[str, dict[str, int]]:
    """A tensor's name as the table of names has it, without its layer and expert, and those numbers."""
    match = re.fullmatch(r"blk\.(\d+)\.([a-z_]+)\.(?:(\d+)\.)?(weight|bias)", name)
    if match is None:
        return name, {}
    layer, kind, expert, last = match.groups()
    numbers = {"layer": int(layer)} | ({} if expert is None else {"expert": int(expert)})
    return f"blk.{{layer}}.{kind}.{'' if expert is None else '{expert}.'}{last}", numbers
