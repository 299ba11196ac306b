# The worker: torch, the model, and what reads videos (PyAV), HEIC (pi-heif) and HDF5 (sleap-io). Build it from the
# repository root:
#   docker build -f docker/worker.Dockerfile -t ppl-worker .                                 torch for CPUs
#   docker build -f docker/worker.Dockerfile -t ppl-worker --build-arg TORCH_INDEX_URL= .    torch with CUDA, from PyPI
FROM python:3.11-slim AS build

# package index of torch: that of its CPU builds, another one, or empty for PyPI, whose build for Linux on x86-64
# includes CUDA
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
# further arguments of pip, such as "--index-url https://pypi.example.org/simple"
ARG PIP_ARGS=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/ppl

# pinned packages first, so that a change of the sources does not reinstall them. Only torch comes from its own index,
# which may lack torch's dependencies
COPY pyproject.toml docker/requirements.py ./
RUN /opt/ppl/bin/pip install $PIP_ARGS --no-deps ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} \
    "$(python requirements.py worker --only torch)"
# imageio-ffmpeg, which sleap-io names and nothing here uses, is left out: a second ffmpeg of 165 MB under the GPL
RUN python requirements.py worker video heic interop store otel > requirements.txt \
    && /opt/ppl/bin/pip install $PIP_ARGS -r requirements.txt \
    && /opt/ppl/bin/pip uninstall --yes --quiet imageio-ffmpeg

COPY README.md LICENSE ./
COPY model model
COPY service service
COPY worker worker
RUN /opt/ppl/bin/pip install $PIP_ARGS --no-deps . && /opt/ppl/bin/pip uninstall --yes --quiet pip

FROM python:3.11-slim

RUN useradd --uid 10001 --user-group --no-create-home --home-dir /cache --shell /usr/sbin/nologin ppl \
    && mkdir -p /data /cache && chown ppl:ppl /data /cache
COPY --from=build /opt/ppl /opt/ppl
COPY docker/entrypoint.sh /opt/ppl/entrypoint.sh

# the two NVIDIA settings have an effect only if the engine provides a GPU
ENV PATH=/opt/ppl/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1 \
    HOME=/cache XDG_CACHE_HOME=/cache \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PPL_DATA_ROOT=/data
USER 10001:10001
WORKDIR /data
VOLUME /data /cache
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=15s --start-period=60s --retries=3 \
    CMD ["sh", "/opt/ppl/entrypoint.sh", "python", "-m", "worker", "health"]
ENTRYPOINT ["sh", "/opt/ppl/entrypoint.sh"]
CMD ["python", "-m", "worker", "inference"]
