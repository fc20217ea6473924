"""`python -m gpuq.daemon FD`: run the daemon; say `ready` or what is wrong on the descriptor, and close it.

Two further numbers are its own, where it begins anew in its place: how often it has, one time after the other, and the
descriptor that keeps clients from starting another meanwhile.
"""

import sys

from gpuq.daemon.main import main

main(*(map(int, sys.argv[1:]) if len(sys.argv) > 1 else (1,)))
