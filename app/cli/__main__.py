"""`python -m app.cli`: the same as `burnish`."""

from app.cli import main

main()
