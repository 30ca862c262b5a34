"""`python -m inferlog`: how the supervisor starts its children, whatever is on the PATH."""

from inferlog.cli import main

if __name__ == "__main__":
    main()
