"""`python -m lowerkit`."""

from lowerkit.cli import main

if __name__ == "__main__":
    main()
