"""`allformers`, and `python -m allformers` for launchers such as `torchrun -m allformers`."""

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Import the command and run it; an interrupt at any moment, also while importing, ends it with status 130."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        from allformers.cli import main as run

        run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Raise `KeyboardInterrupt`; while PyTorch is being imported end at once, since its C++ would abort on that."""
    torch = sys.modules.get("torch")
    if getattr(getattr(torch, "__spec__", None), "_initializing", False):
        os._exit(130)
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
