"""The pages for people: the login, and what is shown at the root."""
