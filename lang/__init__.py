"""The language: primitives, program state, graph; no I/O of its own."""
