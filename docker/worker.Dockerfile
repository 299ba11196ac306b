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
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_PYTHON=/opt/ppl/bin/python
WORKDIR /src
# torch and the program get folders and so layers of their own: a change of the sources changes the program's layer only
RUN python -m venv --without-pip /opt/ppl && python -m venv --without-pip /opt/build \
    && for part in torch app; do echo "/opt/$part/lib/python3.11/site-packages"; done \
    > /opt/ppl/lib/python3.11/site-packages/parts.pth

COPY docker/locks/gateway.lock docker/locks/worker.lock docker/locks/build.lock ./
# sleap-io installs its tests
RUN pip install $PIP_ARGS --no-deps --require-hashes -r gateway.lock -r worker.lock \
    && rm -r /opt/ppl/lib/python3.11/site-packages/tests /opt/ppl/lib/python3.11/site-packages/scipy/*/tests \
    && pip --python /opt/build/bin/python install $PIP_ARGS --no-deps --require-hashes -r build.lock

# torch is pinned without hashes, as its builds differ by index. The second command adds the libraries of CUDA that
# PyPI's build needs, from where PIP_ARGS says; nothing to a build for CPUs. Headers and tests of torch are 190 MB
COPY docker/locks/torch.txt ./
RUN pip install $PIP_ARGS --prefix /opt/torch --no-deps ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} -r torch.txt \
    && pip install $PIP_ARGS --prefix /opt/torch -r torch.txt \
    && torch=/opt/torch/lib/python3.11/site-packages/torch && rm -rf "$torch/include" "$torch/test" \
    && find "$torch/bin" -type f ! -name torch_shm_manager -delete

COPY pyproject.toml README.md LICENSE ./
COPY model model
COPY service service
COPY worker worker
RUN pip --python /opt/build/bin/python wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && pip install --prefix /opt/app --no-deps --no-index dist/*.whl

FROM python:3.11-slim

RUN useradd --uid 10001 --user-group --no-create-home --home-dir /cache --shell /usr/sbin/nologin ppl \
    && mkdir -p /data /cache && chown ppl:ppl /data /cache
COPY --from=build /opt/torch /opt/torch
COPY --from=build /opt/ppl /opt/ppl
COPY docker/entrypoint.sh /opt/ppl/entrypoint.sh
COPY --from=build /opt/app /opt/app

# the two NVIDIA settings have an effect only if the engine provides a GPU
ENV PATH=/opt/app/bin:/opt/ppl/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1 \
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
