"""`python -m l3rs.cli`."""

from l3rs.cli.dispatch import main

if __name__ == "__main__":
    main()
