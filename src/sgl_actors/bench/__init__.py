"""A load generator for OpenAI-compatible servers: what `sgl-actors bench` and the project's benchmarks measure with. Knows no actor."""
