"""How messages get from node to node: in one process (`memory`) or over ZeroMQ (`zeromq`), behind one interface."""
