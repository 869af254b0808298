"""OpenVINO reports to a server when it is imported and what it converts, unless the user turned that off.

This module turns it off, unless the user turned it on with OpenVINO's own command `opt_in_out --opt_in`.
That command could also turn it off, but it would change a file in the user's home, for all programs. So this
module blocks the import of the package that sends; OpenVINO also works where that package is not installed.
"""

import sys

SENDER = "openvino_telemetry"


def off():
    """Keep OpenVINO from sending reports. Call this before OpenVINO is imported."""
    try:
        from openvino_telemetry.utils.opt_in_checker import ConsentCheckResult, OptInChecker

        if OptInChecker().check(enable_opt_in_dialog=False) == ConsentCheckResult.ACCEPTED:
            return
    except Exception:  # not installed, off already, or another version
        pass
    for name in [name for name in sys.modules if name.partition(".")[0] == SENDER]:
        del sys.modules[name]
    sys.modules[SENDER] = None  # makes every import of it an ImportError
