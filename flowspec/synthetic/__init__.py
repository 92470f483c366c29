"""Language without a model: a seeded text and a drafter that agrees with it as often as it is told to."""
