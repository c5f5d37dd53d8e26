"""A model's text side: tokenizer, detokenizer, chat template and defaults of generation.

Used by others: `ChatTemplate`, `Detokenizer`, `GenerationDefaults`, `Spelling`, `Tokenizer`,
`read_generation_defaults`, `read_tokenizer_json`.
"""
