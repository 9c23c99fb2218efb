"""The language for plain functions and threads: blocking reads over the same streams (`sgl_actors.compat` is its public face)."""
