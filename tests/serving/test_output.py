"""Drawn tokens to answers: where each ends and why, and that the pieces make up the whole."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Vocabulary
from tokenizers import decoders, models

from distaff.models.errors import TokenizerError
from distaff.models.tokenizer import Tokenizer
from distaff.serving.output import ChoiceOutput, Output
from distaff.serving.types import FinishReason, Kind, Request, SamplingParams, Timings, TokenEvent, TokenLogprob, Usage

EURO = "€".encode()
"""Three bytes, a token each."""


def byte_tokenizer(*texts: str) -> Tokenizer:
    """A SentencePiece-like vocabulary: 256 byte tokens, then the given texts (▁ for a space)."""
    names = [*(f"<0x{byte:02X}>" for byte in range(256)), *texts, "<unk>"]
    backend = Vocabulary(models.BPE({name: index for index, name in enumerate(names)}, [], unk_token="<unk>"))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return Tokenizer(backend, source="test", special={})


TOKENIZER = byte_tokenizer("▁Paris", "▁is", "END")
PARIS, IS, END = 256, 257, 258
EOS = 259


def choice(
    prompt: tuple[int, ...] = (1,),
    *,
    tokenizer: Tokenizer | None = TOKENIZER,
    stops: frozenset[int] = frozenset({EOS}),
    room: int = 100,
    **params: Any,
) -> ChoiceOutput:
    request = Request(prompt, SamplingParams(**params))
    detokenizer = None if tokenizer is None else tokenizer.detokenizer()
    tokens = request.params.num_tokens(room)
    return ChoiceOutput(request, 0, max_tokens=tokens, stops=stops, detokenizer=detokenizer)


def run(output: ChoiceOutput, tokens: list[int]) -> list[TokenEvent]:
    """Events until the answer ends."""
    events = [] if (echo := output.echo()) is None else [echo]
    for token in tokens:
        events.append(output.add(token))
        if output.finish_reason is not None:
            break
    return events


def letters(text: str) -> list[int]:
    return list(text.encode())


def test_the_end_token_ends_the_text_and_is_not_shown() -> None:
    output = choice()
    events = run(output, [*letters("hi"), EOS, *letters("no")])
    assert [(event.text, event.finish_reason) for event in events] == [("h", None), ("i", None), ("", "stop")]
    answer = output.choice()
    assert (answer.text, answer.token_ids, answer.stopped_by) == ("hi", (*letters("hi"), EOS), EOS)
    assert answer.finish_reason is FinishReason.STOP and answer.logprobs is None and output.num_generated == 3


def test_a_token_that_spells_something_is_not_shown_either_where_it_ends_the_text() -> None:
    output = choice(stops=frozenset({END}))
    run(output, [*letters("hi"), END])
    assert (output.choice().text, output.choice().stopped_by) == ("hi", END)


def test_without_stops_the_text_goes_on_to_its_greatest_length() -> None:
    output = choice(stops=frozenset(), max_tokens=4)
    run(output, [*letters("hi"), EOS, *letters("no")])
    answer = output.choice()
    assert (answer.text, answer.finish_reason, answer.stopped_by) == ("hi<unk>n", FinishReason.LENGTH, None)


def test_the_context_is_the_greatest_length_of_all() -> None:
    output = choice(max_tokens=None, room=3)
    assert len(run(output, letters("hello"))) == 3 and output.finish_reason is FinishReason.LENGTH


def test_a_stop_text_is_cut_wherever_tokens_cut_it() -> None:
    output = choice(stop=("END", "x"))
    events = run(output, [*letters("aE"), *letters("bEN"), *letters("D"), *letters("c")])
    assert [event.text for event in events] == ["a", "", "Eb", "", "", ""]
    assert (output.choice().text, output.choice().stopped_by) == ("aEb", "END")
    assert output.choice().token_ids == tuple(letters("aEbEND"))


def test_what_was_held_back_is_shown_when_the_text_ends_otherwise() -> None:
    output = choice(stop=("END",), max_tokens=3)
    assert [event.text for event in run(output, letters("aEN"))] == ["a", "", "EN"]
    assert output.finish_reason is FinishReason.LENGTH
    output = choice(stop=("END",))
    assert [event.text for event in run(output, [*letters("aEN"), EOS])] == ["a", "", "", "EN"]


def test_a_stop_text_with_the_last_token_is_a_stop() -> None:
    output = choice(stop=("END",), max_tokens=1)
    assert run(output, [END])[0] == TokenEvent(END, "", FinishReason.STOP, stopped_by="END")


def test_below_the_least_length_nothing_stops() -> None:
    """The device does not draw stop tokens there; were there nothing else to draw, the text would go on."""
    output = choice(stop=("E", "ND"), min_tokens=3)
    run(output, [EOS, END, *letters("a"), EOS])
    assert output.num_generated == 4 and output.choice().text == "<unk>ENDa"


def test_a_stop_text_counts_if_it_is_complete_behind_the_least_length() -> None:
    output = choice(stop=("END",), min_tokens=2)
    run(output, letters("END"))
    assert (output.choice().text, output.choice().stopped_by) == ("", "END")


def test_half_a_character_waits_for_the_rest() -> None:
    output = choice()
    assert [event.text for event in run(output, [*EURO, EURO[0], EOS])] == ["", "", "€", "", "\ufffd"]


def test_the_prompt_comes_first_where_it_is_echoed() -> None:
    output = choice((PARIS, IS), echo=True)
    events = run(output, [PARIS, EOS])
    assert [(event.token_id, event.text) for event in events] == [(None, "Paris is"), (PARIS, " Paris"), (EOS, "")]
    assert output.choice().text == "Paris is Paris" and output.choice().token_ids == (PARIS, IS, PARIS, EOS)
    assert output.num_generated == 2
    assert choice((PARIS,)).echo() is None


def test_a_stop_text_in_an_echoed_prompt_stops_nothing() -> None:
    output = choice((END, *letters("E")), echo=True, stop=("END", "Ea"))
    run(output, [*letters("ab"), EOS])
    assert output.choice().text == "ENDEab"


def test_an_end_from_outside_shows_what_was_held_back() -> None:
    output = choice(stop=("END",))
    run(output, letters("aE"))
    assert output.end(FinishReason.ABORT) == TokenEvent(None, "E", FinishReason.ABORT)
    assert (output.choice().text, output.choice().finish_reason) == ("aE", FinishReason.ABORT)


@pytest.mark.parametrize("method", ["add", "finish"])
def test_an_answer_whose_text_fails_can_be_ended(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    output = choice(stop=("END",), max_tokens=3)
    run(output, letters("aE"))

    def fail(*_: object) -> str:
        raise TokenizerError("broken")

    monkeypatch.setattr(f"distaff.models.detokenizer.Detokenizer.{method}", fail)
    with pytest.raises(TokenizerError):
        output.add(ord("N"))
    assert output.finish_reason is None
    assert output.end(FinishReason.ERROR).finish_reason is FinishReason.ERROR
    assert output.choice().token_ids == tuple(letters("aEN")) and output.choice().text.startswith("aE")


def test_token_ids_alone_need_no_tokenizer() -> None:
    output = choice((1, 2), tokenizer=None, echo=True)
    events = run(output, [3, 4, EOS])
    assert [event.token_id for event in events] == [None, 3, 4, EOS] and not any(event.text for event in events)
    assert output.choice().token_ids == (1, 2, 3, 4, EOS)
    assert choice(tokenizer=None).end(FinishReason.ERROR).text == ""


def test_logprobs_belong_to_the_generated_tokens() -> None:
    output = choice((1, 2), echo=True, logprobs=0)
    logprob = TokenLogprob(EOS, -0.5, 1)
    output.echo()
    assert output.add(EOS, logprob).logprob == logprob and output.choice().logprobs == (logprob,)


def test_nothing_comes_behind_the_end() -> None:
    output = choice(max_tokens=1)
    output.add(1)
    with pytest.raises(AssertionError, match="behind the end"):
        output.add(1)


PIECES = st.sampled_from([*letters("ab \n"), *EURO, 0xFF, PARIS, IS, END])


@given(
    prompt=st.lists(PIECES, min_size=1, max_size=4),
    tokens=st.lists(PIECES, min_size=1, max_size=12),
    stops=st.lists(st.sampled_from(["a", "ab", "b\n", "€", "a€", " is", "sEND", "END", "\ufffd"]), max_size=3),
    echo=st.booleans(),
)
@example(prompt=[97], tokens=[98, 10, 97], stops=["b\n", "ab"], echo=True)
@example(prompt=[97], tokens=[97, *EURO, 98], stops=["a€"], echo=False)
def test_the_stream_is_the_whole_text_cut_at_the_first_stop(
    prompt: list[int], tokens: list[int], stops: list[str], echo: bool
) -> None:
    output = choice(tuple(prompt), stop=tuple(stops), echo=echo, max_tokens=len(tokens))
    events = run(output, tokens)
    text = "".join(event.text for event in events)

    detokenizer = TOKENIZER.detokenizer()
    before = "".join(map(detokenizer.add, prompt)) if echo else ""
    expected, reason = before, FinishReason.LENGTH
    answer = ""
    for token in tokens:
        answer += detokenizer.add(token)
        starts = [answer.find(stop) for stop in stops if stop in answer]
        if starts:
            expected, reason = before + answer[: min(starts)], FinishReason.STOP
            break
    else:
        expected += answer + detokenizer.finish()
    assert (text, output.choice().text, output.finish_reason) == (expected, expected, reason)
    assert [event.finish_reason for event in events[:-1]] == [None] * (len(events) - 1)
    assert "\ufffd" in expected or text.encode().decode() == text


def output(kind: Kind = Kind.GENERATE, **params: Any) -> Output:
    request = Request((1, 2, 3), SamplingParams(**params), kind=kind)
    return Output(request, max_tokens=2, eos_ids=frozenset({EOS}), tokenizer=TOKENIZER)


def test_the_answers_to_one_request_end_each_by_itself() -> None:
    both = output(n=2, seed=4, ignore_eos=True, stop_token_ids=(END,))
    first, second = both.choices
    assert not both.finished
    assert [first.add(EOS).choice, second.add(END).choice] == [0, 1]
    assert not both.finished
    first.add(END)
    assert both.finished
    timings = Timings(queue=1.0)
    answer = both.completion(timings, cached_tokens=2)
    assert [(each.index, each.token_ids) for each in answer.choices] == [(0, (EOS, END)), (1, (END,))]
    assert answer.usage == Usage(3, 3, 2) and answer.timings is timings and answer.seed == 4
    assert answer.prompt_token_ids == (1, 2, 3) and answer.prompt_logprobs is None


def test_prompt_logprobs_come_in_parts() -> None:
    one = output(seed=0, prompt_logprobs=1)
    one.choices[0].add(EOS)
    ids, top = np.array([[7, 8], [9, 8]], np.int32), np.array([[-1, -2], [-3, -4]], np.float32)
    one.add_prompt(2, top[1:, 0], ids[1:, 0], ids[1:], top[1:])
    one.add_prompt(1, top[:1, 0], ids[:1, 0], ids[:1], top[:1])
    logprobs = one.completion(Timings()).prompt_logprobs
    assert logprobs is not None
    assert list(logprobs) == [None, TokenLogprob(2, -1, 7, ((7, -1),)), TokenLogprob(3, -3, 9, ((9, -3),))]


def test_a_score_has_no_answers() -> None:
    scored = output(Kind.SCORE)
    assert scored.choices == () and scored.finished
    ids, top = np.array([[7], [9]], np.int32), np.array([[-1], [-3]], np.float32)
    scored.add_prompt(1, top[:, 0], ids[:, 0], ids, top)
    score = scored.score(Timings())
    assert score.total == -4 and score.usage == Usage(3, 0) and score.logprobs[1] == TokenLogprob(2, -1, 7)


def test_an_embedding_has_no_answers() -> None:
    vector = np.array([1, 2], np.float32)
    embedding = output(Kind.EMBED).embedding(vector, Timings())
    assert embedding.vector is vector and embedding.prompt_token_ids == (1, 2, 3)
