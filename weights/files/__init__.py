"""Checkpoints on disk: where they come from, and readers and writers of every format.

Used by others: `AdaptedParts`, `CanvasAdapterFile`, `Checkpoint`, `DEFAULT_CANVAS_ADAPTER`,
`adapt_config`, `adapt_family`, `convert_lightning`, `fetch_default_model`, `fetch_repo`,
`fingerprint`, `is_repo_id`, `open_canvas_adapter`, `open_checkpoint`.
"""
