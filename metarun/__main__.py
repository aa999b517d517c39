"""python -m metarun"""

from metarun.cli.main import main

main()
