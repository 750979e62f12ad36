"""`python -m tgi_launcher`: the same as `tgi-launch`."""

from tgi_launcher.cli import main

main()
