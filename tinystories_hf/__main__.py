"""`python -m tinystories_hf` is the command `tinystories`."""

from tinystories_hf.cli import main

if __name__ == "__main__":
    main()
