"""`python -m prefopt.cli`, as launchers of several processes call it."""

from prefopt.cli.entry import main

if __name__ == "__main__":
    main()
