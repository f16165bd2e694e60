"""`jobrunner demo`: real workers do real work for some seconds, and then the tables tell what happened.

`workers.py` is the example worth reading: a program as users write it. The rest serves it: `site.py` is what it
fetches from, `file.py` the file it runs on, `story.py` the course of events, `screen.py` what is seen meanwhile, and
`report.py` what is asked of the tables at the end.
"""

from __future__ import annotations

from jobrunner.demo.story import main

__all__ = ["main"]
