"""`python -m labref`: the `labref` command, where no script is on the PATH."""

from labref.cli import main

if __name__ == "__main__":
    main()
