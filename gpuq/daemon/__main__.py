"""`python -m gpuq.daemon FD`: run the daemon; say `ready` or what is wrong on the descriptor, and close it.

A further number says how often it has begun anew in its own place, one time after the other.
"""

import sys

from gpuq.daemon.main import main

main(int(sys.argv[1]) if len(sys.argv) > 1 else 1, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
