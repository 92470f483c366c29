"""What a pipe will do before it exists: a simulator on a virtual clock, and a planner of layers over nodes."""
