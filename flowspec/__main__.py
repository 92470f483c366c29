"""Where `flowspec` and `python -m flowspec` begin: nothing is imported before Ctrl-C has an answer."""

from __future__ import annotations

import sys

from flowspec.program import INTERRUPTED


def main() -> None:
    """Run the command line; always ends in `SystemExit`."""
    try:
        from flowspec.cli.main import main as run_command
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    run_command()


if __name__ == "__main__":
    main()
