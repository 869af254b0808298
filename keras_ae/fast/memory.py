"""Memory that one step frees and the next one needs again."""

import ctypes
import functools
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # their numbers in malloc.h


@functools.cache
def keep_memory():
    """Have glibc keep freed memory for the next step.

    By default it gives large arrays back to the system at once, which clears each page anew when the next
    step asks for it: 110 of 200 ms of a step of the default CVAE on tensorflow, 20 of 265 ms on jax, 1.7 of
    14 ms of the mlp on torch. The setting is the whole process's, which does not shrink again but for what
    lies free above 1 GiB at the end of its heap. Does nothing with other C libraries.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(TRIM_THRESHOLD, 1 << 30)
        mallopt(MMAP_MAX, 0)
