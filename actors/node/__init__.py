"""What a node consists of: node.toml to a supervision tree, and the client's side of it."""
