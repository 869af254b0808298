"""`python -m kae`, for `torchrun` and for shells where `kae` is not on the path."""

from kae.main import main

main()
