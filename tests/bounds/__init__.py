"""What a promise of speed comes down to, counted instead of timed: a later change that costs more turns these red.

Each bound is a little above what was counted when it was written, and beside it stands what it protects. Whoever makes
gpuq cheaper lowers the bound; whoever must make it dearer raises it, and says why.
"""
