"""Every sampling parameter, through the whole engine: it changes what comes out, and does what it says."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from distaff.backends.errors import InvalidParameterError
from distaff.models.errors import TokenizerError
from distaff.serving import LLM, SamplingParams
from distaff.serving.capabilities import PARAMETERS, Parameter
from distaff.serving.types import Completion, FinishReason

from .test_llm import PROMPT, model_folder

pytestmark = pytest.mark.any_backend
PLAIN = SamplingParams(seed=4, max_tokens=24, temperature=1.5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """Ends half of its texts within a few tokens."""
    return LLM(model_folder(tmp_path_factory.mktemp("model"), eos=64), context=128, max_batch=4)


def ask(model: LLM, **params: Any) -> Completion:
    return model.stream(PROMPT, replace(PLAIN, ignore_eos=True, **params)).completion()


def told(answer: Completion) -> dict[str, Any]:
    return {name: value for name, value in answer.to_dict().items() if name not in ("timings", "usage", "seed")}


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: parameter.name)
def test_each_parameter_changes_what_comes_out(model: LLM, parameter: Parameter) -> None:
    end = ask(model).token_ids[3]
    # Ends in the fourth token, so that what concerns the end shows.
    plain = replace(PLAIN, stop_token_ids=(end,)) if parameter.name in ("min_tokens", "max_tokens") else PLAIN
    values = {
        "max_tokens": 2,
        "stop_token_ids": (end,),
        "stop": ask(model).text[3],
        "bad_words": tuple(ask(model).text[:4]),
    }
    if parameter.name == "ignore_eos":
        # With an end token that comes up.
        ended = model.stream(PROMPT, replace(PLAIN, allowed_token_ids=(64, end))).completion()
        going_on = model.stream(PROMPT, replace(PLAIN, allowed_token_ids=(64, end), ignore_eos=True)).completion()
        assert (ended.finish_reason, going_on.finish_reason) == (FinishReason.STOP, FinishReason.LENGTH)
        return
    changed = replace(plain, **{parameter.name: values.get(parameter.name, parameter.example)})
    before = model.stream(PROMPT, plain).completion()
    assert told(model.stream(PROMPT, changed).completion()) != told(before)
    assert told(model.stream(PROMPT, plain).completion()) == told(before)


def test_bad_words_do_not_come_up(model: LLM) -> None:
    text = ask(model).text
    words = (text[2:4], text[7])
    without = ask(model, bad_words=words).text
    assert not any(word in without for word in words) and without[:3] == text[:3]


def test_only_allowed_tokens_are_drawn(model: LLM) -> None:
    assert set(ask(model, allowed_token_ids=(3, 5, 8), max_tokens=60).token_ids) == {3, 5, 8}


def test_a_bias_of_a_hundred_decides(model: LLM) -> None:
    assert set(ask(model, logit_bias={9: 100}).token_ids) == {9}


def test_a_text_does_not_end_below_its_least_length(model: LLM) -> None:
    every = tuple(range(64))
    short, long = (ask(model, stop_token_ids=every, min_tokens=least) for least in (0, 10))
    assert len(short.token_ids) < 10 < len(long.token_ids)
    assert not set(long.token_ids[:10]) & set(every) and long.choices[0].stopped_by == long.token_ids[-1]


def test_without_a_greatest_length_the_context_ends_the_text(model: LLM) -> None:
    answer = ask(model, max_tokens=None)
    assert len(answer.token_ids) == 128 - len(PROMPT) and answer.finish_reason is FinishReason.LENGTH


def test_choices_differ_and_are_those_of_their_number(model: LLM) -> None:
    three, two = ask(model, n=3), ask(model, n=2)
    assert len({choice.token_ids for choice in three.choices}) == 3
    assert [choice.token_ids for choice in three.choices[:2]] == [choice.token_ids for choice in two.choices]
    assert three.token_ids == ask(model).token_ids and three.usage.completion_tokens == 3 * 24


def test_logprobs_rank_the_most_likely_tokens(model: LLM) -> None:
    """Of the model's own logits, whatever a parameter does to them."""
    answer = ask(model, logprobs=20, temperature=0)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and [entry.token_id for entry in logprobs] == list(answer.token_ids)
    for entry in logprobs:
        values = [value for _, value in entry.top]
        assert entry.rank == 1 and entry.top[0] == (entry.token_id, entry.logprob)
        assert values == sorted(values, reverse=True) and len(values) == 20 and np.exp(values).sum() <= 1.0001
    biased = ask(model, logprobs=2, logit_bias={answer.token_ids[0]: -50}, temperature=0).choices[0].logprobs
    assert biased is not None
    assert biased[0].rank == 2 and biased[0].top[0][0] == answer.token_ids[0]


def test_prompt_logprobs_are_those_of_a_score(model: LLM) -> None:
    prompt = ask(model, prompt_logprobs=3).prompt_logprobs
    (score,) = model.score([PROMPT], num_top=3)
    assert prompt is not None and prompt[0] is None and len(prompt) == len(PROMPT)
    np.testing.assert_allclose(prompt.logprobs, score.logprobs.logprobs, atol=1e-5)
    np.testing.assert_array_equal(prompt.top_ids, score.logprobs.top_ids)


def test_a_generated_token_is_as_likely_in_a_score(model: LLM) -> None:
    answer = ask(model, logprobs=0)
    (score,) = model.score([(*PROMPT, *answer.token_ids)])
    assert answer.choices[0].logprobs is not None
    np.testing.assert_allclose(
        [entry.logprob for entry in answer.choices[0].logprobs], score.logprobs.logprobs[len(PROMPT) - 1 :], atol=1e-3
    )


def test_an_echo_is_the_prompt_s_text_and_tokens(model: LLM) -> None:
    plain, echoed = ask(model), ask(model, echo=True)
    assert model.tokenizer is not None
    assert echoed.text == model.tokenizer.decode(PROMPT) + plain.text
    assert echoed.token_ids == (*PROMPT, *plain.token_ids) and echoed.usage == plain.usage
    events = list(model.stream(PROMPT, replace(PLAIN, ignore_eos=True, echo=True, n=2)))
    for choice in (0, 1):
        texts = [event.text for event in events if event.choice == choice]
        assert texts[0] == model.tokenizer.decode(PROMPT) and len(texts) == 25


def test_what_a_vocabulary_lacks_is_refused_by_name(model: LLM) -> None:
    for params in (dict(stop_token_ids=(97,)), dict(allowed_token_ids=(97,)), dict(logit_bias={97: 1})):
        with pytest.raises(InvalidParameterError, match=f"{next(iter(params))} is 97, expected token ids from 0 to 96"):
            ask(model, **params)


def test_texts_need_a_tokenizer(tmp_path: Any) -> None:
    bare = LLM(model_folder(tmp_path, tokenizer=False), context=64, max_batch=1)
    for params in (SamplingParams(stop="a"), SamplingParams(bad_words="a")):  # pyright: ignore[reportArgumentType]
        with pytest.raises(TokenizerError):
            bare.stream(PROMPT, params)
