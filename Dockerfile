# One image for every component: `mesh sidecar NAME`, `mesh edge`, `mesh keys`. Layers from what changes least to most.
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS dependencies
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# Two environments: one that builds, and one without pip that becomes the image.
RUN python -m venv /build && python -m venv --without-pip /opt/mesh
WORKDIR /app
COPY requirements-build.lock requirements.lock ./
RUN /build/bin/pip install --require-hashes --requirement requirements-build.lock \
 && /build/bin/pip --python /opt/mesh/bin/python install --require-hashes --requirement requirements.lock \
 && rm requirements*.lock

FROM dependencies AS build
COPY pyproject.toml README.md /src/
COPY protos/meshapi /src/protos/meshapi
COPY mesh /src/mesh
# Below /code and not in place: the image gets what changes with the code as a layer of its own.
RUN /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels /src \
 && /build/bin/pip --python /opt/mesh/bin/python install --no-deps --root /code /wheels/*.whl \
 && cp -a /code/. /
COPY protos protos
COPY mesh.toml ./
# A fresh volume takes owner and mode of the folder that it covers: the folders that `mesh keys --each .mesh/keys` fills.
RUN /opt/mesh/bin/mesh generate \
 && python -c 'import os, tomllib; os.umask(0o077); [os.makedirs(f".mesh/{n}") for n in ["authority", *(f"keys/{n}" for n in [*tomllib.load(open("mesh.toml", "rb"))["services"], "edge", "keys", "operator", "broker"])]]'
COPY services services
# By hash and not by time: the same code is the same layer, whenever it was built.
RUN /opt/mesh/bin/python -m compileall -q --invalidation-mode unchecked-hash gen services

FROM python:${PYTHON_VERSION}-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin mesh \
 && install -d -m 0700 -o mesh -g mesh /app/.mesh /app/.mesh/identity /app/.mesh/api-keys
ENV PATH=/opt/mesh/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app
COPY --from=dependencies /opt/mesh /opt/mesh
COPY --from=build /code/opt/mesh /opt/mesh
COPY --from=build --chown=mesh:mesh /app/.mesh .mesh
COPY --from=build /app/mesh.toml ./
COPY --from=build /app/protos protos
COPY --from=build /app/gen gen
COPY --from=build /app/services services
USER mesh
ENTRYPOINT ["mesh"]
CMD ["--help"]
