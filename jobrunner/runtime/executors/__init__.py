"""How code is run and really stopped: one executor per isolation."""
