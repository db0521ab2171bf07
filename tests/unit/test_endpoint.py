"""How a server that judges is asked, against a real one on loopback that fails as it is told to."""

import asyncio
from typing import Any

import psutil
import pytest
from aiohttp import web

from ring_ray.config import ConfigError, EndpointConfig
from ring_ray.rewards.open_ended.endpoint import Endpoint, UnreadableAnswerError
from ring_ray.types import Reward, Verdict
from tests.unit.http_server import AT_ONCE, Answer, Body, http_server


def endpoint(url: str, **keys: Any) -> Endpoint:
    return Endpoint(EndpointConfig(url=url, model="m", **keys), "reward.judge")


def read(answer: object) -> int:
    match answer:
        case {"twice": int(twice)}:
            return twice
    raise UnreadableAnswerError(f"no number in {answer}")


async def twice(body: Body, before: int) -> web.StreamResponse:
    return web.json_response({"twice": 2 * body["number"]})


def fails_first(times: int, status: int) -> Answer:
    """The first ``times`` requests of each body."""

    async def answer(body: Body, before: int) -> web.StreamResponse:
        if before < times:
            return web.Response(status=status, text="not now", headers=AT_ONCE)
        return await twice(body, before)

    return answer


def numbers(*values: int) -> list[Body]:
    return [{"number": value} for value in values]


def test_answers_come_in_the_order_of_the_questions() -> None:
    all_there = asyncio.Barrier(4)

    async def slower_first(body: Body, before: int) -> web.StreamResponse:
        await all_there.wait()
        await asyncio.sleep(0.1 / body["number"])
        return await twice(body, before)

    with http_server(slower_first) as server:
        assert endpoint(server.url).ask_all("/double", numbers(1, 2, 3, 4), read) == [2, 4, 6, 8]
    assert len(server.bodies) == 4
    assert server.most_at_a_time == 4


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_what_may_pass_is_tried_again(status: int) -> None:
    with http_server(fails_first(2, status)) as server:
        assert endpoint(server.url, tries=3).ask_all("/double", numbers(1, 2), read) == [2, 4]
    assert len(server.bodies) == 6


def test_a_connection_that_breaks_is_tried_again() -> None:
    async def breaks_once(body: Body, before: int) -> web.StreamResponse:
        if before == 0:
            raise ConnectionResetError  # aiohttp closes the connection without an answer
        return await twice(body, before)

    with http_server(breaks_once) as server:
        assert endpoint(server.url).ask_all("/double", numbers(1), read) == [2]
    assert len(server.bodies) == 2


def only_failure(found: Any) -> Reward:
    (reward,) = found
    assert isinstance(reward, Reward)
    assert reward.score == 0
    assert not reward.verdict.reached
    return reward


def test_tries_end() -> None:
    with http_server(fails_first(100, 503)) as server:
        reward = only_failure(endpoint(server.url, tries=2).ask_all("/double", numbers(1), read))
    assert reward.verdict is Verdict.FAILED
    assert server.url in reward.reason
    assert "503" in reward.reason
    assert len(server.bodies) == 2


@pytest.mark.parametrize("status", [400, 401, 404])
def test_what_would_not_pass_is_not_tried_again(status: int) -> None:
    with http_server(fails_first(100, status)) as server:
        reward = only_failure(endpoint(server.url).ask_all("/double", numbers(1), read))
    assert reward.verdict is Verdict.FAILED
    assert str(status) in reward.reason
    assert len(server.bodies) == 1


def test_nobody_there_is_a_failure() -> None:
    with http_server(twice) as server:
        pass
    reward = only_failure(endpoint(server.url, tries=1).ask_all("/double", numbers(1), read))
    assert reward.verdict is Verdict.FAILED


def test_one_that_fails_does_not_take_the_others_with_it() -> None:
    async def refuses_two(body: Body, before: int) -> web.StreamResponse:
        return web.Response(status=400) if body["number"] == 2 else await twice(body, before)

    with http_server(refuses_two) as server:
        first, second, third = endpoint(server.url).ask_all("/double", numbers(1, 2, 3), read)
    assert (first, third) == (2, 6)
    assert isinstance(second, Reward)
    assert second.verdict is Verdict.FAILED


def test_an_answer_that_breaks_its_reader_does_not_take_the_others_with_it() -> None:
    async def too_deep(body: Body, before: int) -> web.StreamResponse:
        if body["number"] == 1:
            return web.Response(text="[" * 100_000, content_type="application/json")
        return await twice(body, before)

    with http_server(too_deep) as server:
        first, second = endpoint(server.url).ask_all("/double", numbers(1, 2), read)
    assert second == 4
    assert isinstance(first, Reward)
    assert first.verdict is Verdict.FAILED
    assert "RecursionError" in first.reason


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"twice": "4"}'])
def test_an_answer_that_is_none_is_a_failure_and_is_not_remembered(text: str) -> None:
    async def garbled_once(body: Body, before: int) -> web.StreamResponse:
        return web.Response(text=text, content_type="application/json") if not before else await twice(body, before)

    with http_server(garbled_once) as server:
        asked = endpoint(server.url)
        assert only_failure(asked.ask_all("/double", numbers(1), read)).verdict is Verdict.FAILED
        assert asked.ask_all("/double", numbers(1), read) == [2]


def test_silence_ends_at_the_time_limit() -> None:
    async def silent(body: Body, before: int) -> web.StreamResponse:
        if body["number"] == 1:
            await asyncio.Event().wait()
        return await twice(body, before)

    with http_server(silent) as server:
        # The second waits for the place that the first has.
        asked = endpoint(server.url, timeout_seconds=0.5, concurrency=1)
        first, second = asked.ask_all("/double", numbers(1, 2), read)
        assert asked.ask_all("/double", numbers(3), read) == [6]
    for reward in (first, second):
        assert isinstance(reward, Reward)
        assert reward.verdict is Verdict.TIMED_OUT
        assert "reward.judge.timeout_seconds=0.5" in reward.reason


def test_a_request_that_takes_too_long_is_tried_again() -> None:
    async def silent_once(body: Body, before: int) -> web.StreamResponse:
        if before == 0:
            await asyncio.Event().wait()
        return await twice(body, before)

    with http_server(silent_once) as server:
        assert endpoint(server.url, request_seconds=0.5, tries=2).ask_all("/double", numbers(1), read) == [2]
    assert len(server.bodies) == 2


def test_as_many_are_under_way_as_allowed() -> None:
    by_threes = asyncio.Barrier(3)

    async def together(body: Body, before: int) -> web.StreamResponse:
        await by_threes.wait()
        return await twice(body, before)

    with http_server(together) as server:
        found = endpoint(server.url, concurrency=3).ask_all("/double", numbers(*range(9)), read)
    assert found == [2 * number for number in range(9)]
    assert server.most_at_a_time == 3


def test_answers_are_remembered_by_all_that_was_asked() -> None:
    with http_server(twice) as server:
        asked = endpoint(server.url, cached=2)
        asked.ask_all("/double", numbers(1, 2), read)
        assert asked.ask_all("/double", numbers(2, 1), read) == [4, 2]
        assert len(server.bodies) == 2
        asked.ask_all("/other", numbers(1), read)  # takes the place of the least recently asked
        asked.ask_all("/double", numbers(1), read)
        assert len(server.bodies) == 3
        asked.ask_all("/double", numbers(2), read)
        assert len(server.bodies) == 4


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret\n")  # as from a file that an editor made
    with http_server(twice) as server:
        endpoint(server.url, api_key_variable="MY_KEY").ask_all("/double", numbers(1), read)
        endpoint(server.url, api_key_variable="NO_KEY").ask_all("/double", numbers(1), read)
    assert [headers["Authorization"] for headers in server.headers] == ["Bearer secret", "Bearer none"]


def test_nothing_stays_connected() -> None:
    def connected(port: int) -> int:
        found = psutil.Process().net_connections("tcp")
        return sum(
            bool(one.raddr) and one.raddr.port == port and one.status == psutil.CONN_ESTABLISHED for one in found
        )

    with http_server(twice) as server:
        port = int(server.url.rpartition(":")[2])
        asked = endpoint(server.url)
        asked.ask_all("/double", numbers(1, 2), read)
        assert connected(port) == 2
        asked.close()
        assert connected(port) == 0
        endpoint(server.url).close()  # which was never asked


def test_an_endpoint_needs_an_address() -> None:
    with pytest.raises(ConfigError, match=r"reward\.judge\.url=None"):
        Endpoint(EndpointConfig(), "reward.judge")
