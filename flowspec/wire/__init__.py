"""What travels between nodes: typed messages, their frames and their tensors. Knows no socket and no loop."""
