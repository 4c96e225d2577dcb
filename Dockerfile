# One image for every component: `mesh sidecar NAME`, `mesh edge`, `mesh keys`. Layers from what changes least to most.
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# Two environments: one that builds, and one without pip that becomes the image.
RUN python -m venv /build && python -m venv --without-pip /opt/mesh
WORKDIR /app
COPY requirements-build.lock requirements.lock ./
RUN /build/bin/pip install --require-hashes --requirement requirements-build.lock \
 && /build/bin/pip --python /opt/mesh/bin/python install --require-hashes --requirement requirements.lock
COPY pyproject.toml README.md ./
COPY protos/meshapi protos/meshapi
COPY mesh mesh
RUN /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /build/bin/pip --python /opt/mesh/bin/python install --no-deps /wheels/*.whl \
 && rm -rf mesh pyproject.toml requirements*.lock
COPY protos protos
COPY mesh.toml ./
RUN /opt/mesh/bin/mesh generate
COPY services services
RUN /opt/mesh/bin/python -m compileall -q gen services

FROM python:${PYTHON_VERSION}-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin mesh \
 && install -d -o mesh -g mesh /app /app/.mesh /app/.mesh/identity
ENV PATH=/opt/mesh/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app
COPY --from=build /opt/mesh /opt/mesh
COPY --from=build /app /app
USER mesh
ENTRYPOINT ["mesh"]
CMD ["--help"]
