"""``python -m landscape.cli``, and under ``torchrun -m``: the command line without its script."""

from landscape.cli import main

if __name__ == "__main__":
    main()
