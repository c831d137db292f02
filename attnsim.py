"""`python -m attnsim` is the command `attnsim`."""

from sim.cli.app import main

if __name__ == "__main__":
    main()
