"""Clients that the test environment does not hold, against a running server; run by hand:

python -m tests.server.other_clients ADDRESS, with anthropic, litellm, langchain-openai, instructor,
pydantic-ai and llm installed. The server is `python -m tests.server.serve_scripted --port 8000`;
its model says "hello" and, held to a schema or to calls, JSON that fits.
"""

import asyncio
import os
import sys
import tempfile
from pathlib import Path

import pytest
from pydantic import BaseModel

HELLO = [{"role": "user", "content": "hi"}]


class Greeting(BaseModel):
    """What a structured answer holds."""

    word: str


TOOL = {
    "type": "function",
    "function": {
        "name": "greet",
        "description": "Greets with a word",
        "parameters": Greeting.model_json_schema(),
    },
}


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
    called = litellm.completion(**asked, tools=[TOOL], tool_choice="required").choices[0].message
    assert called.tool_calls[0].function.name == "greet"
    held = litellm.completion(**asked, response_format=Greeting).choices[0].message.content
    assert Greeting.model_validate_json(held) == Greeting(word="hello")


def use_langchain(address):
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="tiny", base_url=f"{address}/v1", api_key="none", max_retries=0)
    assert model.invoke("hi").content == "hello"
    assert "".join(part.content for part in model.stream("hi")) == "hello"
    structured = model.with_structured_output(Greeting, method="json_schema")
    assert structured.invoke("hi") == Greeting(word="hello")
    called = model.bind_tools([TOOL], tool_choice="required").invoke("hi").tool_calls
    assert [(call["name"], call["args"]) for call in called] == [("greet", {"word": "hello"})]


def use_instructor(address):
    import instructor
    import openai

    asked = {"model": "tiny", "messages": HELLO, "response_model": Greeting}
    for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS):
        plain = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
        client = instructor.from_openai(plain, mode=mode)
        assert client.chat.completions.create(**asked).word == "hello"


def use_pydantic_ai(address):
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{address}/v1", api_key="none")
    model = OpenAIChatModel("tiny", provider=provider)
    agent = Agent(model)
    assert agent.run_sync("hi").output == "hello"
    assert Agent(model, output_type=Greeting).run_sync("hi").output == Greeting(word="hello")

    async def streamed():
        async with agent.run_stream("hi") as result:
            return await result.get_output()

    assert asyncio.run(streamed()) == "hello"


def use_llm(address):
    import llm

    with tempfile.TemporaryDirectory() as folder:
        os.environ["LLM_USER_PATH"] = folder
        entry = f"- model_id: estuary\n  model_name: tiny\n  api_base: {address}/v1\n"
        Path(folder, "extra-openai-models.yaml").write_text(entry)
        model = llm.get_model("estuary")
        model.key = "none"
        assert model.prompt("hi", stream=False).text() == "hello"
        assert "".join(model.prompt("hi")) == "hello"


CLIENTS = (
    use_anthropic,
    use_litellm,
    use_langchain,
    use_instructor,
    use_pydantic_ai,
    use_llm,
)


def main(address):
    for use in CLIENTS:
        use(address)
        print(f"{use.__name__}: ok")


if __name__ == "__main__":
    main(sys.argv[1])
