"""Several engines behind one door: the tokens of each request, and where requests go."""

from distaff.serving import Completion, Engine, EngineConfig, Request, SamplingParams
from distaff.serving.replicas import Replicas

from ..fakes import continuation
from .test_engine import VOCAB, make


def replicas(count: int = 2) -> Replicas:
    return Replicas([make()[0] for _ in range(count)])


def request(*prompt: int, tokens: int = 4) -> Request:
    return Request(prompt, SamplingParams(max_tokens=tokens, temperature=0, seed=0))


def test_every_request_gets_its_own_tokens() -> None:
    prompts = [tuple(range(first, first + 5)) for first in range(20)]
    with replicas(3) as engines:
        results = engines.generate(request(*prompt) for prompt in prompts)
        engines.check_integrity()
        assert [engine.metrics.requests > 0 for engine in engines.engines] == [True] * 3
        assert engines.num_requests == 0
    for prompt, result in zip(prompts, results, strict=True):
        assert isinstance(result, Completion)
        whole = continuation(prompt, 9, seed=0, windows=(None,), vocab_size=VOCAB)
        assert [*prompt, *result.token_ids] == whole


def test_threads_do_the_rounds_once_they_are_started() -> None:
    with replicas() as engines:
        engines.start()
        results = engines.generate([request(1, 2, 3), request(4, 5, 6)])
    assert [len(result.token_ids) for result in results if isinstance(result, Completion)] == [4, 4]


def test_prompts_that_begin_alike_go_to_one_engine_until_it_has_a_batch_more_to_do() -> None:
    engines = Replicas([make(max_batch=2)[0] for _ in range(2)])
    first, second = engines.engines

    def counts() -> list[int]:
        return [engine.num_requests for engine in (first, second)]

    waiting = [engines.submit(request(1, 2, 3))]
    waiting += [engines.submit(request(7, 8, 9))]
    assert counts() == [1, 1]  # another text, the engine with less to do
    waiting += [engines.submit(request(1, 2, 3)) for _ in range(3)]
    assert counts() == [4, 1]
    waiting += [engines.submit(request(1, 2, 3))]
    assert counts() == [4, 2]  # three more than the other: it moves, and its next ones go there too
    waiting += [engines.submit(request(1, 2, 3))]
    assert counts() == [4, 3]
    engines.run()
    assert all(len(each.completion().token_ids) == 4 for each in waiting)
    engines.close()


def test_a_replica_is_an_engine() -> None:
    """What callers ask of an engine, several answer too."""
    own = {name for name in vars(Engine) if not name.startswith("_")}
    within = {
        "admissible",
        "adopt",
        "begin",
        "drop",
        "finish",
        "note_levels",
        "recover",
        "take_requests",
    }  # parts of a round
    assert own - set(dir(Replicas)) == within
    assert replicas().config == EngineConfig(max_batch=8, max_step_tokens=32)
