"""The gateway stays small: no torch, no worker, little memory."""

from __future__ import annotations

import os
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
version = ("bank_poses", "palette", "prior_values", "skeleton")
allowed |= {"model.version", *(f"model.version.{name}" for name in version)}
allowed |= {"model.network", "model.network.architecture"}
found = {name for name in sys.modules if name.startswith("model")}
assert found <= allowed, found - allowed
with open("/proc/self/status") as status:
    facts = dict(line.split(":", 1) for line in status)
print(facts["VmRSS"].split()[0], facts["Threads"])
"""


def test_gateway_in_a_fresh_interpreter_has_no_torch_one_thread_and_under_150_mb(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    command = [sys.executable, "-P", "-c", CODE]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    memory, threads = map(int, done.stdout.split())
    assert memory < 150_000
    assert threads == 1, "numpy's own threads wait for each other on busy cores"
