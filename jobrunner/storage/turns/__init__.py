"""The fast path: what a turn does (`turn`), its rules (`rules`), and its mechanics on each database."""
