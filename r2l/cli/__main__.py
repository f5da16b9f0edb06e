"""`python -m r2l.cli` is `r2l`."""

from r2l.cli import main

main()
