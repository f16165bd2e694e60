"""Floor 3: events, and the subscribers that log and count them."""
