"""Text to token ids and back, for Hugging Face folders and GGUF files."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import processors

from .chat_template import ChatTemplate
from .detokenizer import Detokenizer, Spelling
from .errors import ChatTemplateError, TokenizerError
from .gguf_vocabulary import build_vocabulary, gguf_templates
from .tokenizer_files import read_folder, tokenizer_errors

_MAX_ID = 2**32 - 1


class Tokenizer:
    """A vocabulary, the roles of its tokens and its chat template.

    Attributes:
        source: the folder or file it came from, for messages.
        vocab_size: one more than the largest id.
        bos_id: the id that starts a text, None if the model has none.
        eos_ids: the ids that end a generation; more than one where a turn and a text end differently.
        chat_template: None if the model has none.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        source: str,
        special: Mapping[str, str],
        eos_ids: Sequence[int] = (),
        templates: Mapping[str, str] | None = None,
        template_source: str = "",
        vocab_size: int | None = None,
    ) -> None:
        """`special` maps roles ("bos_token", "eos_token", ...) to texts. Prefer `from_folder` and `from_gguf`."""
        self.source = source
        self.special_tokens = dict(special)
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()
        ids = {role: backend.token_to_id(text) for role, text in special.items()}
        self.bos_id: int | None = ids.get("bos_token")
        eos = ids.get("eos_token")
        self.eos_ids: frozenset[int] = frozenset(eos_ids or ([eos] if eos is not None else []))
        self.vocab_size: int = vocab_size or 1 + max(backend.get_vocab().values(), default=-1)
        self.chat_template: ChatTemplate | None = None
        if templates:
            self.chat_template = ChatTemplate(templates, source=template_source or source, special_tokens=special)
        self._spelling = Spelling.from_decoder(json.loads(backend.to_str())["decoder"], source=source)
        self._special_ids = {index for index, token in backend.get_added_tokens_decoder().items() if token.special}

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Read tokenizer.json (or vocab.json and merges.txt) and the files beside it. Raises TokenizerError."""
        files = read_folder(folder)
        source = str(folder / "tokenizer.json")
        if files.adds is not None:
            bos, eos = (files.special.get(role) if role in files.adds else None for role in ("bos_token", "eos_token"))
            _set_template(files.backend, bos, eos)
        with tokenizer_errors(source, "reading it as a tokenizer"):
            return cls(
                files.backend,
                source=source,
                special=files.special,
                eos_ids=files.eos_ids,
                templates=files.templates,
                template_source=files.template_source,
            )

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], *, source: str) -> "Tokenizer":
        """Rebuild the tokenizer from GGUF metadata (keys `tokenizer.*` to Python values; `general.architecture` is
        looked at too, for Gemma). Raises TokenizerError naming `source` and the key."""
        vocabulary = build_vocabulary(metadata, source=source)
        tokens = metadata["tokenizer.ggml.tokens"]
        roles = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
        special = {roles[name]: tokens[index] for name, index in vocabulary.named_ids.items() if name in roles}
        bos = special.get("bos_token") if vocabulary.add_bos else None
        eos = special.get("eos_token") if vocabulary.add_eos else None
        _set_template(vocabulary.backend, bos, eos)
        return cls(
            vocabulary.backend,
            source=source,
            special=special,
            eos_ids=vocabulary.eos_ids,
            templates=gguf_templates(metadata, source=source),
            template_source=f"{source}: tokenizer.chat_template",
            vocab_size=vocabulary.size,
        )

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids of `text`. `add_special` adds BOS/EOS where the model wants them; special tokens written out in
        the text are recognised either way. Raises TokenizerError for text that is no Unicode (lone surrogates)."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"the text has a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}, "
                "expected valid Unicode; was it read as bytes in another encoding?"
            ) from error
        with tokenizer_errors(self.source, "encoding the text"):
            return self._backend.encode(text, add_special_tokens=add_special).ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of `ids`. Ids that the vocabulary lacks (the padding of an embedding table) are left out."""
        detokenizer = self.detokenizer(skip_special=skip_special)
        return "".join([detokenizer.add(index) for index in ids]) + detokenizer.finish()

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for in the middle of a text, perhaps a part of a character; nothing for an id that the
        vocabulary lacks."""
        token = self._backend.id_to_token(token_id) if 0 <= token_id <= _MAX_ID else None
        return b"" if token is None else self._spelling.to_bytes(token)

    def detokenizer(self, *, skip_special: bool = True) -> Detokenizer:
        """A fresh incremental decoder."""

        def token_of(token_id: int) -> str | None:
            if not 0 <= token_id <= _MAX_ID:
                raise TokenizerError(f"token id {token_id} is out of range, expected 0 to {self.vocab_size - 1}")
            if skip_special and token_id in self._special_ids:
                return None
            return self._backend.id_to_token(int(token_id))

        return Detokenizer(self._spelling, token_of)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        now: datetime | None = None,
        **variables: Any,
    ) -> str:
        """The prompt for a conversation, special tokens written out: encode it with `add_special=False`.

        Args:
            messages: {"role", "content", ...} each.
            now: the time that templates may print; the clock's by default.
            variables: more variables for the template (`tools`, `documents`, `enable_thinking`, ...).

        Raises:
            ChatTemplateError: no template, or it does not compile, refuses or misbehaves.
        """
        if self.chat_template is None:
            raise ChatTemplateError(
                f"{self.source}: the model has no chat template; use a prompt without --chat, or an instruct model"
            )
        return self.chat_template.render(
            messages, add_generation_prompt=add_generation_prompt, now=now or datetime.now(), **variables
        )

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and the chat template as transformers reads them; and
        generation_config.json with the ids that end a generation, unless there is one."""
        folder.mkdir(parents=True, exist_ok=True)
        with tokenizer_errors(str(folder / "tokenizer.json"), "writing it"):
            self._backend.save(str(folder / "tokenizer.json"))
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **self.special_tokens}
        config["clean_up_tokenization_spaces"] = False
        more = folder / "additional_chat_templates"
        for path in (folder / "chat_template.jinja", folder / "chat_template.json", *more.glob("*.jinja")):
            path.unlink(missing_ok=True)
        for name, text in (self.chat_template.sources if self.chat_template else {}).items():
            path = folder / "chat_template.jinja" if name == "default" else more / f"{name}.jinja"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="")
        _write_json(folder / "tokenizer_config.json", config)
        if self.eos_ids and not (folder / "generation_config.json").exists():
            ids = sorted(self.eos_ids)
            _write_json(folder / "generation_config.json", {"bos_token_id": self.bos_id, "eos_token_id": ids})


def _set_template(backend: Backend, bos: str | None, eos: str | None) -> None:
    """Make the post-processor add exactly these tokens around a text."""
    items = [*([f"{bos}:0"] if bos else []), "$A:0", *([f"{eos}:0"] if eos else [])]
    tokens = [(text, backend.token_to_id(text)) for text in (bos, eos) if text]
    backend.post_processor = processors.TemplateProcessing(single=items, pair=None, special_tokens=tokens)


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
