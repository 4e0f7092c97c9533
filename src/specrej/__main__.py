"""`python -m specrej` is the command `specrej`."""

from specrej.cli import main

if __name__ == "__main__":
    main()
