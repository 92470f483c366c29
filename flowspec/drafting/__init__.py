"""Drafters: where the guesses come from. They know no pipe, no client and no other drafter."""
