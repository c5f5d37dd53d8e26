"""From bodies to validated requests: template, tokenizer, limits, sampling.

Used by others: `ModelTools`, `PromptTokens`, `Translated`, `chat_of_messages`,
`chat_of_responses`, `count_chat_tokens`, `encode_marked`, `render_chat`, `translate_chat`,
`translate_completion`.
"""
