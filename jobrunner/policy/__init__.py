"""Floor 2: pure decisions, `(facts, now) -> decision`. No I/O, no clock, no randomness of its own."""
