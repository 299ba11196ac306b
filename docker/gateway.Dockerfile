# The gateway: HTTP only, without torch. Build it from the repository root:
#   docker build -f docker/gateway.Dockerfile -t ppl-gateway .
FROM python:3.11-slim AS build

# further arguments of pip, such as "--index-url https://pypi.example.org/simple"
ARG PIP_ARGS=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_PYTHON=/opt/ppl/bin/python
WORKDIR /src
# the program gets a folder and so a layer of its own: a change of the sources does not change the libraries' layer
RUN python -m venv --without-pip /opt/ppl && python -m venv --without-pip /opt/build \
    && echo /opt/app/lib/python3.11/site-packages > /opt/ppl/lib/python3.11/site-packages/parts.pth

COPY docker/locks/gateway.lock docker/locks/build.lock ./
# sleap-io installs its tests
RUN pip install $PIP_ARGS --no-deps --require-hashes -r gateway.lock \
    && rm -r /opt/ppl/lib/python3.11/site-packages/tests /opt/ppl/lib/python3.11/site-packages/scipy/*/tests \
    && pip --python /opt/build/bin/python install $PIP_ARGS --no-deps --require-hashes -r build.lock

COPY pyproject.toml README.md LICENSE ./
COPY model model
COPY service service
COPY worker worker
RUN pip --python /opt/build/bin/python wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && pip install --prefix /opt/app --no-deps --no-index dist/*.whl

FROM python:3.11-slim

RUN useradd --uid 10001 --user-group --no-create-home --home-dir /cache --shell /usr/sbin/nologin ppl \
    && mkdir -p /data /cache && chown ppl:ppl /data /cache
COPY --from=build /opt/ppl /opt/ppl
COPY docker/entrypoint.sh /opt/ppl/entrypoint.sh
COPY --from=build /opt/app /opt/app

ENV PATH=/opt/app/bin:/opt/ppl/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1 \
    PPL_HOST=0.0.0.0 PPL_PORT=8000 PPL_DATA_ROOT=/data
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
ENTRYPOINT ["sh", "/opt/ppl/entrypoint.sh"]
CMD ["python", "-m", "service.gateway.serve"]
