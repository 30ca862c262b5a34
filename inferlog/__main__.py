"""`inferlog`, and `python -m inferlog`, which starts children whatever is on the PATH."""

import sys


def main() -> None:
    """The entry point. Ctrl-C while the rest is still being imported is no traceback either."""
    try:
        from inferlog.cli import main as command_line  # noqa: PLC0415  (that is what takes time)

        command_line()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
