"""`python -m allformers`: the command, for launchers such as `torchrun -m allformers`."""

from allformers.cli import main

if __name__ == "__main__":
    main()
