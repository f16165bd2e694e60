"""The soak: half an hour of all kinds of handlers and of trouble, on both databases. `scripts/chaos --soak` runs it."""
