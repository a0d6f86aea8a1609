#!/usr/bin/env bash
# OpenVINO: `import openvino` reports to its makers, unasked, and puts an identifier into the home folder
#
# One expects:   a library for inference sends nothing anywhere, or asks first: openvino_telemetry has a dialog for that,
#                and its own documentation tells of consent.
# What happens:  the import creates a client identifier in the home folder, and hands an event to a sender for Google
#                Analytics; `convert_model` hands over more of them. OpenVINO passes `enable_opt_in_dialog=False`, and
#                without the dialog a missing answer counts as consent. Nothing is sent where the environment has CI=true
#                or after `opt_in_out --opt_out`, so that tests never show it.
# Who meets it:  anybody who runs OpenVINO's wheel in a service, or on a machine that must be silent. Before the import,
#                `sys.modules["openvino_telemetry"] = None` makes OpenVINO take a stub that does nothing.
# Versions:      openvino 2026.4.1, openvino-telemetry 2025.2.0. Nothing is sent here: the sender is replaced
# Source:        openvino `tools/ovc/__init__.py` (send_event), `tools/ovc/telemetry_utils.py` (init_ovc_telemetry);
#                openvino_telemetry `main.py`, Telemetry.init (`ConsentCheckResult.NO_FILE`)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q "openvino==2026.4.1" "openvino-telemetry==2025.2.0"
cat >look.py <<'PY'
import sys
from pathlib import Path

handed_over = []
if sys.argv[1] == "as installed":
    from openvino_telemetry.utils.sender import TelemetrySender

    TelemetrySender.send = lambda self, backend, message: handed_over.append(backend.backend_url)
else:
    sys.modules["openvino_telemetry"] = None

import openvino

files = [path.relative_to(Path.home()) for path in Path.home().rglob("*") if path.is_file()]
print(f"openvino {openvino.__version__}, {sys.argv[1]}: files {[str(path) for path in files]}, to be sent to {handed_over}")
assert bool(files) == bool(handed_over) == (sys.argv[1] == "as installed"), "the import is silent now, or the stub is not"
PY
for way in "as installed" "without the package"; do
    mkdir -p "home $way"
    env -u CI HOME="$PWD/home $way" venv/bin/python look.py "$way"
done
