"""Alerts: the rules, the look for incidents that last, and the outbox of messages."""
