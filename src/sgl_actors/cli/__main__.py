"""`python -m sgl_actors.cli` is `sgl-actors`."""

from sgl_actors.cli import main

main()
