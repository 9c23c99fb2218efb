"""Rooms of `benchmarks/serve.py`: the workloads, the peers, transformers' own `generate`, and what has to come out."""
