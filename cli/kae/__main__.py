"""`kae`, and `python -m kae`, for `torchrun` and for shells where `kae` is not on the path."""

import sys


def run():
    """Run the command line, from whose imports on Ctrl-C is a line."""
    try:
        from kae.main import main

        main()
    except KeyboardInterrupt:
        sys.exit("Aborted!")


if __name__ == "__main__":
    run()
