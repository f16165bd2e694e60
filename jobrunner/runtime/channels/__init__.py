"""Where alerts go: a webhook, a command, an Apprise URL."""
