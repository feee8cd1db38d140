"""Starts a program that cannot outlive its parent process: `launch.py PARENT_PID COMMAND…`.

The local stack starts everything through this file, so that no orphan is left even if the supervisor gets a SIGKILL.
On Linux the kernel kills the program (the flag survives the exec, and the process id stays the same); elsewhere a small
process watches both. It imports only the standard library: it runs without site-packages, in 20 ms.
"""

import ctypes
import os
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
WATCH_INTERVAL_S = 0.5
EXIT_NOT_STARTED = 127


def main(parent: int, command: list[str]) -> None:
    """Becomes the command; returns only if the parent has already exited. Exits if the command cannot be started."""
    if sys.platform == "linux":
        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    elif os.fork() == 0:
        _watch(parent, os.getppid())
    # The parent may have died before the flag was set.
    if os.getppid() == parent:
        try:
            os.execvp(command[0], command)  # noqa: S606 - the whole purpose of this file
        except OSError as error:
            sys.stderr.write(f"{command[0]}: {error.strerror}\n")
            sys.exit(EXIT_NOT_STARTED)


def _watch(parent: int, program: int) -> None:
    while _is_alive(program):
        if not _is_alive(parent):
            os.kill(program, signal.SIGKILL)
            break
        time.sleep(WATCH_INTERVAL_S)
    os._exit(0)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
