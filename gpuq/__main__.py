"""`python -m gpuq` is `gpuq`."""

from gpuq.cli.app import main

if __name__ == "__main__":
    main()
