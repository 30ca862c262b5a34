"""What goes wrong for the person at the keyboard: said in a sentence, never as a traceback."""

from core.errors import InferlogError
from runtime.service import EXIT_FAILED, EXIT_USAGE


class CommandFailed(InferlogError):
    """A command could not do it. The text says what happened, why, and what to do.

    `exit_code` 1: it may work another time; 2: what was typed, or set, cannot work.
    """

    exit_code = EXIT_FAILED


class WrongUsage(CommandFailed):
    """What was typed, or set in the environment, cannot work."""

    exit_code = EXIT_USAGE
