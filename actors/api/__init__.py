"""API models as actors: rate limits, retries and budgets over `lang.backends`."""
