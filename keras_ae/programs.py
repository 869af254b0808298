"""Programs of this package that run in a process beside this one."""

import json
import sys

START = "import json, sys\nsys.path[:] = json.loads(sys.argv.pop(1))\n"


def command_of(program, *arguments):
    """The command line of a Python program, a text, with its arguments.

    It looks for modules where this process does, but not by PYTHONPATH: from there Python runs a sitecustomize.
    """
    # Python leaves out entries of other types, which notebooks add.
    looked_in = json.dumps([entry for entry in sys.path if isinstance(entry, str)])
    return [sys.executable, "-P", "-c", START + program, looked_in, *map(str, arguments)]
