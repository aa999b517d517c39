"""python -m metarun"""

from metarun.cli import main

main()
