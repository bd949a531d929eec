"""Runs the command line of `xcit` for `python -m xcit`."""

from xcit.cli import main

if __name__ == "__main__":
    main()
