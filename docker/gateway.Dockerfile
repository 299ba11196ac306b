# The gateway: HTTP only, without torch. Build it from the repository root:
#   docker build -f docker/gateway.Dockerfile -t ppl-gateway .
FROM python:3.11-slim AS build

# further arguments of pip, such as "--index-url https://pypi.example.org/simple"
ARG PIP_ARGS=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/ppl

# pinned packages first, so that a change of the sources does not reinstall them
COPY pyproject.toml docker/requirements.py ./
# imageio-ffmpeg, which sleap-io names and nothing here uses, is left out: a second ffmpeg of 165 MB under the GPL
RUN python requirements.py video heic interop store otel > requirements.txt \
    && /opt/ppl/bin/pip install $PIP_ARGS -r requirements.txt \
    && /opt/ppl/bin/pip uninstall --yes --quiet imageio-ffmpeg

COPY README.md LICENSE ./
COPY model model
COPY service service
COPY worker worker
RUN /opt/ppl/bin/pip install $PIP_ARGS --no-deps . && /opt/ppl/bin/pip uninstall --yes --quiet setuptools pip

FROM python:3.11-slim

RUN useradd --uid 10001 --user-group --no-create-home --home-dir /cache --shell /usr/sbin/nologin ppl \
    && mkdir -p /data /cache && chown ppl:ppl /data /cache
COPY --from=build /opt/ppl /opt/ppl
COPY docker/entrypoint.sh /opt/ppl/entrypoint.sh

ENV PATH=/opt/ppl/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1 \
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
