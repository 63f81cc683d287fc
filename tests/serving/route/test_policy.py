"""Which server gets a request."""

import random

from distaff.serving.route.policy import Standing, ranked


def names(standings: list[Standing], prompt_tokens: int = 100, **known: int) -> list[str]:
    return [standing.name for standing in ranked(standings, prompt_tokens, known)]


def test_the_idle_one_comes_first_and_one_that_is_not_ready_not_at_all() -> None:
    servers = [Standing("a", in_flight=3), Standing("b", in_flight=1), Standing("c", ready=False)]
    assert names(servers) == ["b", "a"]
    assert names([Standing("c", ready=False)]) == []


def test_equals_take_turns() -> None:
    assert names([Standing("a", turn=2), Standing("b", turn=1)]) == ["b", "a"]


def test_a_shared_prefix_wins_until_its_server_is_too_busy() -> None:
    assert names([Standing("a", in_flight=5), Standing("b")], 2000, a=1600) == ["a", "b"]
    assert names([Standing("a", in_flight=5, pending_tokens=1700), Standing("b")], 2000, a=1600) == ["b", "a"]
    assert names([Standing("a", in_flight=5), Standing("b")], 100, a=64) == ["b", "a"]


def test_what_a_server_says_of_others_counts() -> None:
    busy, ours = Standing("a"), Standing("b", in_flight=3)
    busy.report(4, 8, ours=0)
    assert (busy.others_waiting, busy.others_running) == (4, 8) and names([busy, ours]) == ["b", "a"]
    assert busy.cost(100, 0) == 100 + 4 * 100 + 8 * 16
    ours.report(2, 1, ours=3)
    assert ours.cost(100, 0) == 100 + 3 * 16  # it repeats what we know
    ours.report(2, 5, ours=3)
    assert (ours.others_waiting, ours.others_running) == (2, 2)


def test_load_is_spread_evenly_over_prompts_that_share_nothing() -> None:
    servers = [Standing(name) for name in "abcd"]
    source = random.Random(0)
    for turn in range(400):
        chosen = ranked(servers, source.randint(10, 500), {})[0]
        chosen.in_flight += 1
        chosen.turn = turn
    assert max(server.in_flight for server in servers) - min(server.in_flight for server in servers) <= 1
