"""Runs from the trigger to the end of an attempt: enqueue, look, claim, finish, letters, retention."""
