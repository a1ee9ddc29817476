"""`python -m grimmgen` is `grimmgen`."""

from grimmgen.cli import main

main()
