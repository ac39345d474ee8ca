"""Where the program starts: `foveate`, and `python -m foveate`."""

import os
import signal

INTERRUPTED = "interrupted; nothing was left half-written"


def stop(*_: object) -> None:
    """End the process at once with a line, where there is nothing to clean up."""
    try:
        os.write(2, f"foveate: error: {INTERRUPTED}\n".encode())
    finally:
        os._exit(128 + 2)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # This early, since imports take most of a short run, and Ctrl-C in them is a traceback.
    signal.signal(signal.SIGINT, stop)


def main() -> None:
    """Run the command line; Ctrl-C ends in one line from the first moment to the last."""
    try:
        from foveate.cli import main as command_line

        command_line(prog_name="foveate")
    except KeyboardInterrupt:
        stop()


if __name__ == "__main__":
    main()
