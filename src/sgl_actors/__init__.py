"""sgl-actors: a language for programs that call language models many times, and its runtime."""
