"""`python -m worker` with short leases: a job or batch of a killed one is soon free again."""

import sys

from service.contract import routing

LEASE_TTL_S = VISIBILITY_S = 6


def work(kind: str, heartbeat_every_s: float = routing.HEARTBEAT_EVERY_S) -> int:
    routing.LEASE_TTL_S, routing.INFERENCE_VISIBILITY_S = LEASE_TTL_S, VISIBILITY_S
    routing.HEARTBEAT_EVERY_S = heartbeat_every_s
    from worker.__main__ import main  # only now: its modules read these as they are imported

    return main([kind])


if __name__ == "__main__":
    sys.exit(work(sys.argv[1]))
