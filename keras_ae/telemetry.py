"""OpenVINO tells a server when it is imported and what it converts, unless a person turned that off.

Here it is off unless a person turned it on: by OpenVINO's own switch, the command `opt_in_out --opt_in`.
Turning it off by that switch would change a file in the user's home, for all programs. Instead the package
that sends is kept from this process; OpenVINO does without it, as where it is not installed.
"""

import sys

SENDER = "openvino_telemetry"


def off():
    """Keep OpenVINO from calling home. To be called before OpenVINO is imported."""
    try:
        from openvino_telemetry.utils.opt_in_checker import ConsentCheckResult, OptInChecker

        if OptInChecker().check(enable_opt_in_dialog=False) == ConsentCheckResult.ACCEPTED:
            return
    except Exception:  # not installed, or off already, or of another version
        pass
    for name in [name for name in sys.modules if name.partition(".")[0] == SENDER]:
        del sys.modules[name]
    sys.modules[SENDER] = None  # an ImportError for who asks
