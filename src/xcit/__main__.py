"""`python -m xcit` is `xcit`."""

from xcit.cli import main

if __name__ == "__main__":
    main()
