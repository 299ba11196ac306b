"""`python -m service.gateway.serve` with short claims, so that estimates of a killed gateway are soon taken over."""

import sys

CLAIM_TTL_S, RENEW_EVERY_S = 6.0, 1.0


def serve() -> None:
    from service.estimates.background import shared_store

    shared_store.CLAIM_TTL_S, shared_store.RENEW_EVERY_S = CLAIM_TTL_S, RENEW_EVERY_S
    from service.gateway.serve import main

    sys.argv = ["gateway"]
    main()
