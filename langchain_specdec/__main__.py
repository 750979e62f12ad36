"""`python -m langchain_specdec`: the same as `specdec`."""

from langchain_specdec.cli import main

main()
