"""The daemon's own planner under a virtual clock: what a policy, or other GPUs, would have made of a queue."""
