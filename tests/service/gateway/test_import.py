"""The gateway stays small: no torch, no worker, little memory."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from service.gateway.app import create_app
from service.runtime.settings import Settings
app = create_app(Settings())
app.openapi()
kept_out = ("torch", "worker", "torchvision", "scipy", "av")
loaded = sorted(name for name in sys.modules if name.partition(".")[0] in kept_out)
assert not loaded, loaded
labels = ("labels", "label_files", "label_fitting", "label_hdf5", "label_json", "label_matching", "label_tables")
scoring = (*labels, "landmarks", "linear_maps", "matching", "presence")
allowed = {"model", "model.config", "model.scoring", *(f"model.scoring.{name}" for name in scoring)}
allowed |= {"model.version", "model.version.prior_values", "model.version.skeleton"}
allowed |= {"model.network", "model.network.architecture"}
found = {name for name in sys.modules if name.startswith("model")}
assert found <= allowed, found - allowed
with open("/proc/self/status") as status:
    print(next(line for line in status if line.startswith("VmRSS")).split()[1])
"""


def test_gateway_in_a_fresh_interpreter_has_no_torch_and_under_150_mb(tmp_path):
    done = subprocess.run([sys.executable, "-P", "-c", CODE], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 150_000
