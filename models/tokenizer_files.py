"""The files of a tokenizer in a Hugging Face folder, read with errors that name file and field."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from ..backends.errors import DistaffError
from .errors import TokenizerError

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@contextmanager
def tokenizer_errors(source: str, doing: str) -> Iterator[None]:
    """Turn whatever `tokenizers` raises, Rust panics included (they are BaseExceptions), into TokenizerError."""
    try:
        yield
    except DistaffError:
        raise
    except Exception as error:
        raise TokenizerError(f"{source}: {doing} failed: {error}") from error
    except BaseException as error:
        if type(error).__module__ == "pyo3_runtime":
            raise TokenizerError(f"{source}: {doing} failed inside the tokenizers library: {error}") from error
        raise


@dataclass(frozen=True)
class TokenizerFiles:
    """What a folder says.

    Attributes:
        backend: tokenizer.json, with the special tokens that only tokenizer_config.json names added.
        special: role ("bos_token", ...) to text.
        adds: "bos_token" and "eos_token", if tokenizer_config.json says that they are added and there is no
            tokenizer.json to say it (transformers too follows tokenizer.json alone where there is one); else None.
        templates: chat templates by name.
        eos_ids: the ids that end a generation, from generation_config.json or else config.json; empty if neither says.
    """

    backend: Tokenizer
    special: dict[str, str]
    adds: frozenset[str] | None
    templates: dict[str, str] = field(default_factory=dict[str, str])
    template_source: str = ""
    eos_ids: tuple[int, ...] = ()


def read_folder(folder: Path) -> TokenizerFiles:
    """Read tokenizer.json and what stands beside it. Raises TokenizerError."""
    config_path = folder / "tokenizer_config.json"
    config = read_json(config_path)
    for name, value in read_json(folder / "special_tokens_map.json").items():
        config.setdefault(name, value)
    backend = _read_backend(folder)
    flags = frozenset(role for role in ("bos_token", "eos_token") if _flag(config, f"add_{role}", config_path))
    special = {role: text for role in _ROLES if (text := _text_of(config.get(role), config_path, role)) is not None}
    with tokenizer_errors(str(config_path), "adding its special tokens"):
        _add_missing(backend, config, special, config_path)
    templates, template_source = _templates(folder, config)
    return TokenizerFiles(
        backend=backend,
        special=special,
        adds=None if (folder / "tokenizer.json").is_file() else flags,
        templates=templates,
        template_source=template_source,
        eos_ids=_eos_ids(folder),
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} if there is no such file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: not readable as JSON ({error}); download the model again") from error
    if not isinstance(data, dict):
        raise TokenizerError(f"{path}: holds a JSON {type(data).__name__}, expected an object")
    return data


def _read_backend(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise TokenizerError(f"{path}: not readable ({error}); download the model again") from error
        with tokenizer_errors(str(path), "reading it as a tokenizer"):
            return Tokenizer.from_str(text)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _read_gpt2(folder)
    raise TokenizerError(
        f"{path}: no such file, and no vocab.json with merges.txt beside it; expected one of them. "
        "For a model that has tokenizer.model only, write tokenizer.json with transformers: "
        "AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)"
    )


def _read_gpt2(folder: Path) -> Tokenizer:
    """The older pair of files of byte-level BPE (OPT has no other)."""
    from tokenizers import decoders, models, pre_tokenizers

    with tokenizer_errors(str(folder / "vocab.json"), "reading it with merges.txt as byte-level BPE"):
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
        backend = Tokenizer(model)
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        return backend


def _text_of(value: object, path: Path, name: str) -> str | None:
    """A special token is a string, or an object with `content` (how AddedToken is written)."""
    if isinstance(value, Mapping):
        value = value.get("content")
    if value is None or isinstance(value, str):
        return value
    raise TokenizerError(f"{path}: {name} is {value!r}, expected a string or an object with a string `content`")


def _flag(config: Mapping[str, Any], name: str, path: Path) -> bool:
    value = config.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise TokenizerError(f"{path}: {name} is {value!r}, expected true or false")


def _add_missing(backend: Tokenizer, config: Mapping[str, Any], special: Mapping[str, str], path: Path) -> None:
    """Add the tokens that tokenizer_config.json has and tokenizer.json lacks, in order of id."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    listed = config.get("added_tokens_decoder") or {}
    if not isinstance(listed, Mapping):
        raise TokenizerError(f"{path}: added_tokens_decoder is a {type(listed).__name__}, expected an object")
    for key in sorted(listed, key=lambda key: (len(key), key)):
        text = _text_of(listed[key], path, f"added_tokens_decoder.{key}")
        if text and text not in known:
            options = listed[key] if isinstance(listed[key], Mapping) else {}
            flags = {name: bool(options.get(name, False)) for name in ("single_word", "lstrip", "rstrip", "special")}
            backend.add_tokens([AddedToken(text, normalized=bool(options.get("normalized", False)), **flags)])
            known.add(text)
    extra = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
    if not isinstance(extra, (list, Mapping)):
        raise TokenizerError(f"{path}: additional_special_tokens is {extra!r}, expected a list")
    values = list(extra.values()) if isinstance(extra, Mapping) else extra
    texts = [*special.values(), *(_text_of(value, path, "additional_special_tokens") for value in values)]
    backend.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in texts if text and text not in known]
    )


def _templates(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """Chat templates by name, and where they are from: files of their own, or else tokenizer_config.json."""
    files = [folder / "chat_template.jinja", *sorted((folder / "additional_chat_templates").glob("*.jinja"))]
    files = [path for path in files if path.is_file()]
    if files:
        try:
            texts = [path.read_text(encoding="utf-8") for path in files]
        except (OSError, ValueError) as error:
            raise TokenizerError(f"{folder}: a chat template is not readable ({error}); download it again") from error
        names = ["default" if path.name == "chat_template.jinja" else path.stem for path in files]
        return dict(zip(names, texts, strict=True)), str(files[0])
    path = folder / "chat_template.json"
    found = read_json(path).get("chat_template")
    if found is None:
        path, found = folder / "tokenizer_config.json", config.get("chat_template")
    if found is None:
        return {}, ""
    if isinstance(found, str):
        return {"default": found}, str(path)
    if isinstance(found, list) and all(
        isinstance(entry, Mapping) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)
        for entry in found
    ):
        names = [entry["name"] for entry in found]
        if bad := [name for name in names if not _NAME.fullmatch(name)]:  # they become file names
            raise TokenizerError(f"{path}: chat_template has the name {bad[0]!r}, expected letters, digits, _ and -")
        return {entry["name"]: entry["template"] for entry in found}, str(path)
    raise TokenizerError(
        f"{path}: chat_template is a {type(found).__name__}, "
        "expected a string or a list of objects with name and template"
    )


def _eos_ids(folder: Path) -> tuple[int, ...]:
    """As transformers: generation_config.json decides, or else config.json."""
    for name in ("generation_config.json", "config.json"):
        value = read_json(folder / name).get("eos_token_id")
        if value is None:
            continue
        listed: list[object] = value if isinstance(value, list) else [value]
        ids = [entry for entry in listed if isinstance(entry, int) and not isinstance(entry, bool) and entry >= 0]
        if len(ids) != len(listed):
            raise TokenizerError(f"{folder / name}: eos_token_id is {value!r}, expected an id or a list of ids")
        return tuple(ids)
    return ()
