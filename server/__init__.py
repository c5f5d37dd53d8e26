"""HTTP: the OpenAI schema, settings, process start and stop, metrics, the playground page."""
