"""What the operating system allows this process, raised as far as it lets us."""

from __future__ import annotations

import contextlib
import sys

MOST_FILES = 65_536


def allow_many_connections() -> None:
    """Let this process have as many connections as it may: who opens thousands must not shut out the others.

    ZeroMQ's thread would spin at full speed, were there no file descriptor left for a connection that waits.
    """
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
