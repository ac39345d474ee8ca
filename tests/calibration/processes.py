"""Runs of several processes."""

import subprocess
import sys

from tests.command import ONE_THREAD


def run_two_processes(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """A verb in two processes on the CPU; about 10 s, since both load torch."""
    launch = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", "0", "-m", "foveate",
    ]  # fmt: skip
    done = subprocess.run(
        [*launch, *map(str, arguments)], env=ONE_THREAD, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done
