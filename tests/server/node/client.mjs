// The official Node client against the address given: one line of JSON with what it got.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const asked = { model: "tiny", messages: [{ role: "user", content: "hi" }] };
const got = {};

const whole = await client.chat.completions.create({ ...asked, n: 2, logprobs: true });
got.whole = whole.choices.map((choice) => choice.message.content);
got.logprobs = whole.choices[0].logprobs.content.map((entry) => entry.token).join("");

got.streamed = "";
const extra = { stream: true, stream_options: { include_usage: true }, decoding: { stream: "steps" } };
for await (const chunk of await client.chat.completions.create({ ...asked, ...extra })) {
  got.streamed += chunk.choices[0]?.delta?.content ?? "";
  got.tokens = chunk.usage?.completion_tokens;
}

got.helped = await client.chat.completions.stream(asked).finalContent();
got.completed = (await client.completions.create({ model: "tiny", prompt: "hi" })).choices[0].text;
got.responded = (await client.responses.create({ model: "tiny", input: "hi" })).output_text;

const schema = { type: "object", properties: { word: { type: "string" } }, required: ["word"] };
const format = { type: "json_schema", json_schema: { name: "greeting", schema, strict: true } };
const held = await client.chat.completions.create({ ...asked, response_format: format });
got.held = JSON.parse(held.choices[0].message.content);

const tools = [{ type: "function", function: { name: "greet", parameters: schema } }];
const calling = await client.chat.completions
  .stream({ ...asked, tools, tool_choice: "required" })
  .finalChatCompletion();
const [call] = calling.choices[0].message.tool_calls;
got.called = [call.function.name, JSON.parse(call.function.arguments), calling.choices[0].finish_reason];

try {
  await client.chat.completions.create({ ...asked, model: "nope" });
} catch (error) {
  got.error = [error.status, error.code, error.param];
}
console.log(JSON.stringify(got));
