"""Training of drafts for a target: `flowspec train-draft`, and the makers of the demo's models.

It knows models, drafters and files; it refuses to know pipes, sockets and clients.
"""
