"""The model's side of a node: loading a block of layers, running it under a tree mask, caching and pruning rows."""
