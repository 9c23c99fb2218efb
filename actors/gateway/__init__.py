"""HTTP: OpenAI-compatible and native endpoints, metrics."""
