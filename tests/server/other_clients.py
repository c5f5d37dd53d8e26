"""Clients that the test environment does not hold, against a running server; run by hand:

python -m tests.server.other_clients ADDRESS, with anthropic, litellm, langchain-openai, instructor
and pydantic-ai installed. The server is `python -m tests.server.serve_scripted`, whose model says
"hello" and, held to a schema, JSON that fits it.
"""

import asyncio
import sys

import pytest
from pydantic import BaseModel

HELLO = [{"role": "user", "content": "hi"}]


class Greeting(BaseModel):
    """What a structured answer holds."""

    word: str


def use_anthropic(address):
    import anthropic

    client = anthropic.Anthropic(api_key="none", base_url=address, max_retries=0)
    asked = {"model": "tiny", "max_tokens": 20, "messages": HELLO}
    assert client.messages.create(**asked).content[0].text == "hello"
    with client.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == "hello"
        assert stream.get_final_message().stop_reason == "end_turn"
    assert client.messages.count_tokens(model="tiny", messages=HELLO).input_tokens > 0
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**asked | {"model": "nope"})


def use_litellm(address):
    import litellm

    asked = {"model": "hosted_vllm/tiny", "messages": HELLO, "api_base": f"{address}/v1"}
    assert litellm.completion(**asked).choices[0].message.content == "hello"
    chunks = litellm.completion(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "hello"


def use_langchain(address):
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="tiny", base_url=f"{address}/v1", api_key="none", max_retries=0)
    assert model.invoke("hi").content == "hello"
    assert "".join(part.content for part in model.stream("hi")) == "hello"
    structured = model.with_structured_output(Greeting, method="json_schema")
    assert structured.invoke("hi") == Greeting(word="hello")


def use_instructor(address):
    import instructor
    import openai

    client = instructor.from_openai(
        openai.OpenAI(base_url=f"{address}/v1", api_key="none"), mode=instructor.Mode.JSON_SCHEMA
    )
    asked = {"model": "tiny", "messages": HELLO, "response_model": Greeting}
    assert client.chat.completions.create(**asked).word == "hello"


def use_pydantic_ai(address):
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{address}/v1", api_key="none")
    agent = Agent(OpenAIChatModel("tiny", provider=provider))
    assert agent.run_sync("hi").output == "hello"

    async def streamed():
        async with agent.run_stream("hi") as result:
            return await result.get_output()

    assert asyncio.run(streamed()) == "hello"


def main(address):
    for use in (use_anthropic, use_litellm, use_langchain, use_instructor, use_pydantic_ai):
        use(address)
        print(f"{use.__name__}: ok")


if __name__ == "__main__":
    main(sys.argv[1])
