"""One module per group of routes.

Used by others: `chat`, `completions`, `embeddings`, `health`, `messages`, `models`,
`playground_router`, `responses`, `tokenize`.
"""
