"""`python -m gpuq.daemon FD`: run the daemon; say `ready` or what is wrong on the descriptor, and close it."""

import sys

from gpuq.daemon.main import main

main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
