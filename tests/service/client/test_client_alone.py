"""The client imports without modules that Windows or a machine without the server lacks, or that take long."""

from __future__ import annotations

import subprocess
import sys

BLOCKED = ("fcntl", "resource", "celery", "kombu", "redis", "torch", "fastapi", "starlette", "worker")
BLOCKED += ("numpy", "PIL", "cv2", "pydantic_settings")
SCRIPT = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None  # importing it raises ImportError
import service.aio
import service.client
import service.client.webhook_signature
rooms = sorted(name for name in sys.modules if name.startswith("service."))
print("\\n".join(rooms))
"""


def test_client_imports_without_fcntl_resource_celery_torch_and_numpy() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    rooms = {name.split(".")[1] for name in done.stdout.split()} - {"aio", "client", "contract"}
    modules = {name for name in done.stdout.split() if name.split(".")[1] in rooms and name.count(".") > 1}
    assert modules
    assert all(name.endswith(".schemas") for name in modules), modules
