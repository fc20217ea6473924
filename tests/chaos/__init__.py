"""Chaos: real daemons are killed while real clients and jobs go on, and a checker that knows nothing of gpuq judges.

python -m tests.chaos --kills 1000        # daemons, supervisors and whole boxes die at random instants
python -m tests.chaos --mode points       # daemons die at each crash point of gpuq/crash.py
python -m tests.chaos.checker FOLDER      # judge once more what `--keep` kept
python -m tests.chaos.fuzz --minutes 10   # nothing but defined errors, whatever is said to it
"""
