"""The Python API on a tiny golden model: what it generates, when it stops, what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from distaff.backends.errors import InvalidParameterError, UnsupportedError
from distaff.models.errors import ChatTemplateError, ModelNotFoundError, TokenizerError
from distaff.serving import LLM, ContextLengthError, EmptyPromptError, FinishReason, Progress, SamplingParams

pytestmark = pytest.mark.any_backend
GOLDEN = Path(__file__).parent.parent / "golden" / "llama32"
EXPECTED = np.load(GOLDEN / "expected.npz")
PROMPT_LEN = int(EXPECTED["prompt_len"])
PROMPT, CONTINUATION = EXPECTED["tokens"][:PROMPT_LEN].tolist(), EXPECTED["tokens"][PROMPT_LEN:].tolist()
GREEDY = SamplingParams(max_tokens=len(CONTINUATION), temperature=0)
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}!{% endif %}"


def model_folder(folder: Path, *, eos: int | None = None, tokenizer: bool = True, **config: Any) -> Path:
    """The golden checkpoint with a byte-level tokenizer of one character a token."""
    shutil.copytree(GOLDEN, folder, dirs_exist_ok=True)
    settings = json.loads((folder / "config.json").read_text()) | {"eos_token_id": None} | config
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({} if eos is None else {"eos_token_id": [eos]}))
    if tokenizer:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: settings["vocab_size"]]
        built = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
        built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        built.decoder = decoders.ByteLevel()
        built.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM(model_folder(tmp_path_factory.mktemp("model")))


def test_greedy_tokens_are_those_of_transformers(model: LLM) -> None:
    answer = model.stream(PROMPT, GREEDY).completion()
    assert list(answer.token_ids) == CONTINUATION
    assert (answer.finish_reason, answer.usage.total_tokens) == (FinishReason.LENGTH, PROMPT_LEN + len(CONTINUATION))


def test_the_streamed_text_is_the_text_of_the_tokens(model: LLM) -> None:
    generation = model.stream("Hello", SamplingParams(max_tokens=20, seed=3))
    events = list(generation)
    answer = generation.completion()
    assert [event.token_id for event in events] == list(answer.token_ids) and len(events) == 20
    assert "".join(event.text for event in events) == answer.text
    assert model.tokenizer is not None and answer.text == model.tokenizer.decode(answer.token_ids)
    assert [event.finish_reason for event in events] == [None] * 19 + [FinishReason.LENGTH]


def test_a_prompt_read_in_chunks_gives_the_same_tokens(tmp_path: Path) -> None:
    model = LLM(model_folder(tmp_path), max_step_tokens=16, max_batch=2)
    assert PROMPT_LEN > 32
    assert list(model.stream(PROMPT, GREEDY).completion().token_ids) == CONTINUATION
    assert model.engine.metrics.prefill.calls == -(-PROMPT_LEN // 16)


def test_a_seed_repeats_a_draw_and_a_missing_one_is_named(model: LLM) -> None:
    def draw(seed: int | None) -> tuple[tuple[int, ...], int]:
        answer = model.stream(PROMPT, SamplingParams(max_tokens=16, temperature=2.0, seed=seed)).completion()
        return answer.token_ids, answer.seed

    tokens, seed = draw(None)
    assert draw(seed) == (tokens, seed)
    assert len({draw(seed)[0] for seed in (1, 2, 2**40 + 1)}) == 3


@pytest.mark.parametrize("params", [dict(top_k=1), dict(top_p=1e-6), dict(min_p=1.0)])
def test_each_cut_at_its_tightest_is_greedy(model: LLM, params: dict[str, Any]) -> None:
    sampled = model.stream(PROMPT, SamplingParams(max_tokens=8, temperature=3.0, seed=0, **params)).completion()
    free = model.stream(PROMPT, SamplingParams(max_tokens=8, temperature=3.0, seed=0)).completion()
    assert list(sampled.token_ids) == CONTINUATION[:8] != list(free.token_ids)


def test_an_end_token_ends_the_text_and_is_reported_but_not_shown(tmp_path: Path) -> None:
    end = CONTINUATION[5]
    answer = LLM(model_folder(tmp_path, eos=end)).stream(PROMPT, GREEDY).completion()
    cut = CONTINUATION.index(end)
    assert list(answer.token_ids) == CONTINUATION[: cut + 1] and answer.finish_reason == FinishReason.STOP
    assert len(answer.text) == cut


def test_a_stop_text_ends_the_text_and_is_left_out(model: LLM) -> None:
    whole = model.stream(PROMPT, GREEDY).completion()
    stop = whole.text[6:9]
    params = SamplingParams(max_tokens=len(CONTINUATION), temperature=0, stop=("never there", stop))
    answer = model.stream(PROMPT, params).completion()
    assert answer.text == whole.text[: whole.text.index(stop)] and answer.finish_reason == FinishReason.STOP
    assert len(answer.token_ids) < len(CONTINUATION)


@pytest.mark.slow
def test_the_context_ends_a_text_that_would_outgrow_it(tmp_path: Path) -> None:
    small = LLM(model_folder(tmp_path, max_position_embeddings=PROMPT_LEN + 5))
    answer = small.stream(PROMPT, GREEDY).completion()
    assert list(answer.token_ids) == CONTINUATION[:5] and answer.finish_reason == FinishReason.LENGTH
    with pytest.raises(ContextLengthError, match=rf"{PROMPT_LEN + 5} tokens.*at most {PROMPT_LEN + 4} tokens"):
        small.stream([1] * (PROMPT_LEN + 5))


def test_several_prompts_give_what_each_gives_alone(model: LLM) -> None:
    params = SamplingParams(max_tokens=4, temperature=0)
    assert [answer.text for answer in model.generate(["One", "Two"], params)] == [
        model.generate("One", params).text,
        model.generate("Two", params).text,
    ]


def test_a_chat_goes_through_the_template(model: LLM) -> None:
    params = SamplingParams(max_tokens=4, temperature=0)
    assert model.chat([{"role": "user", "content": "Hi"}], params).text == model.generate("Hi!", params).text


def test_programs_are_compiled_once(tmp_path: Path) -> None:
    seen: list[Progress] = []
    fresh = LLM(model_folder(tmp_path), on_progress=seen.append, prefix_cache=False)
    first, second = (fresh.stream(PROMPT, GREEDY).completion().timings for _ in range(2))
    assert first.compile > 0 and first.load > 0 and second.compile == second.load == 0
    assert [progress.done for progress in seen if progress.stage == "compile"] == [1, 2, 3]
    loaded = [progress for progress in seen if progress.stage == "load"]
    assert loaded and loaded[-1].done == loaded[-1].total


@pytest.mark.parametrize("prompt", ["", []])
def test_an_empty_prompt_is_refused(model: LLM, prompt: str | list[int]) -> None:
    with pytest.raises(EmptyPromptError, match="at least one token"):
        model.stream(prompt)


@pytest.mark.parametrize("token", [-1, 97])
def test_a_token_outside_the_vocabulary_is_refused(model: LLM, token: int) -> None:
    with pytest.raises(InvalidParameterError, match=f"prompt is {token}, expected token ids from 0 to 96"):
        model.stream([1, token])


def test_without_a_tokenizer_token_ids_work_and_text_is_refused(tmp_path: Path) -> None:
    bare = LLM(model_folder(tmp_path, tokenizer=False))
    assert list(bare.stream(PROMPT, GREEDY).completion().token_ids) == CONTINUATION
    for refused in (lambda: bare.generate("Hi"), lambda: bare.stream([1], SamplingParams(stop=("x",)))):
        with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
            refused()


def test_what_a_model_lacks_is_refused_by_name(tmp_path: Path, model: LLM) -> None:
    with pytest.raises(InvalidParameterError, match="dtype is 'int3', expected float32 or bfloat16"):
        LLM(GOLDEN, dtype="int3")
    with pytest.raises(UnsupportedError, match="backend 'abacus'"):
        LLM(GOLDEN, backend="abacus")
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        LLM(str(tmp_path / "nowhere" / "at" / "all"))
    (folder := model_folder(tmp_path / "plain")).joinpath("tokenizer_config.json").unlink()
    with pytest.raises(ChatTemplateError, match="no chat template"):
        LLM(folder).chat([{"role": "user", "content": "Hi"}])
