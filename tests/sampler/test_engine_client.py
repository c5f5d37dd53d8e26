"""The engine in its own process, over a tiny checkpoint: streams, cancels, floods and deaths."""

import asyncio
import os
import signal

import pytest

from sampler import EngineClient, EngineConfig, EngineStopped, FinishReason, Overloaded
from tests.sampler.golden_engine import GOLDEN, golden_cases
from tests.tiny import request

CASE = golden_cases("llama")["decode_greedy_short"].entry


def config(**options):
    settings = {"max_sequences": 4, "max_rows": 64, "cache_bytes": 1 << 20, "num_threads": 1}
    return EngineConfig(model=str(GOLDEN / "llama"), **{**settings, **options})


def client_test(test):
    """Run a test with a started client and stop the client whatever happens."""

    def run():
        async def inside():
            client = EngineClient(config())
            await client.start()
            try:
                await asyncio.wait_for(test(client), timeout=60)
            finally:
                await client.stop()

        asyncio.run(inside())

    run.__name__ = test.__name__
    return run


def golden_request(name, **options):
    return request(name, CASE["prompt_ids"], **{"max_tokens": CASE["max_new_tokens"], **options})


async def answer(client, one):
    tokens, last = [], None
    async for delta in client.submit(one):
        tokens.extend(delta.token_ids)
        last = delta
    return tokens, last


@client_test
async def test_the_golden_tokens_come_through_the_process(client):
    tokens, last = await answer(client, golden_request("a"))
    assert tokens == CASE["new_tokens"]
    assert last.finish is FinishReason.LENGTH
    assert last.stats.answer_tokens == len(tokens)
    assert client.num_open == 0


@client_test
async def test_requests_run_at_the_same_time(client):
    answers = await asyncio.gather(
        *(answer(client, golden_request(str(number))) for number in range(12))
    )
    assert all(tokens == CASE["new_tokens"] for tokens, _ in answers)


@client_test
async def test_a_client_that_leaves_frees_its_pages(client):
    stream = client.submit(golden_request("a", max_tokens=200))
    await anext(stream)
    await stream.aclose()
    await answer(client, golden_request("b", max_tokens=2))
    assert client.num_open == 0
    assert client.metrics.pages_used == 0


@client_test
async def test_ending_early_brings_the_cost(client):
    last = None
    async for delta in client.submit(golden_request("a", max_tokens=200)):
        client.end_early("a")
        last = delta
    assert last.finish in (FinishReason.ABORT, FinishReason.LENGTH)
    assert last.stats is not None


@client_test
async def test_a_request_that_cannot_be_served_is_answered_and_nothing_else_happens(client):
    bad = request("bad", [100_000], max_tokens=3)
    answers = await asyncio.gather(answer(client, bad), answer(client, golden_request("good")))
    assert answers[0][1].finish is FinishReason.ERROR
    assert answers[1][0] == CASE["new_tokens"]


@client_test
async def test_an_id_in_use_is_refused(client):
    stream = client.submit(golden_request("a", max_tokens=100))
    with pytest.raises(ValueError, match="open already"):
        client.submit(golden_request("a"))
    await stream.aclose()


@client_test
async def test_a_killed_engine_ends_every_stream_with_an_error(client):
    streams = [client.submit(golden_request(str(n), max_tokens=200)) for n in range(3)]
    await anext(streams[0])
    os.kill(client.process_id, signal.SIGKILL)
    for stream in streams:
        with pytest.raises(EngineStopped):
            async for _ in stream:
                pass
    assert not client.is_ready
    with pytest.raises(EngineStopped):
        client.submit(golden_request("late"))


def test_a_full_queue_answers_at_once():
    async def inside():
        client = EngineClient(config(max_sequences=1, max_waiting=1))
        await client.start()
        streams = [client.submit(golden_request(str(n), max_tokens=100)) for n in range(2)]
        with pytest.raises(Overloaded) as refusal:
            client.submit(golden_request("third"))
        assert refusal.value.retry_after_s > 0
        for stream in streams:
            await stream.aclose()
        await client.stop()

    asyncio.run(inside())


def test_a_stop_is_told_from_a_death():
    deaths = []

    async def inside():
        client = EngineClient(config(), on_stopped=lambda: deaths.append(1))
        await client.start()
        await client.stop()
        assert not client.is_alive
        await client.start()
        tokens, _ = await answer(client, golden_request("again"))
        assert tokens == CASE["new_tokens"]
        os.kill(client.process_id, signal.SIGKILL)
        while client.is_alive:
            await asyncio.sleep(0.01)
        await client.stop()

    asyncio.run(inside())
    assert deaths == [1]


def test_a_model_that_is_not_there_is_one_sentence(tmp_path):
    async def inside():
        client = EngineClient(EngineConfig(model=str(tmp_path)))
        with pytest.raises(EngineStopped, match="cannot start"):
            await client.start()
        await client.stop()

    asyncio.run(inside())


def test_draining_lets_open_requests_finish():
    async def inside():
        client = EngineClient(config())
        await client.start()
        running = asyncio.create_task(answer(client, golden_request("a")))
        await asyncio.sleep(0)
        await client.stop(drain_s=30.0)
        tokens, last = await running
        assert tokens == CASE["new_tokens"]
        assert last.finish is FinishReason.LENGTH

    asyncio.run(inside())
