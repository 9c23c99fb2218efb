"""A module that cannot be imported: somebody's plugin that fails as it is loaded."""

raise RuntimeError("the chaos case says so")
