"""What to send, and when: pure state machines. Knows no socket, no clock, no torch and no text."""
