"""`python -m r2l` is `r2l`."""

from r2l.cli import main

main()
