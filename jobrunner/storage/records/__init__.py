"""What is only ever added: history, audit log; and what nodes there were."""
