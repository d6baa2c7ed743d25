# One image for all processes; the command selects one: `gateway`, `worker` or `demo-model`.
#
# A release is built from the base image's digest, and says what it is made of (docs/deploy.md):
#   docker build --build-arg PYTHON_IMAGE=python:3.11.14-slim-bookworm@sha256:… --build-arg REVISION=$(git rev-parse HEAD) \
#     --sbom=true --provenance=true .
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm
FROM ${PYTHON_IMAGE} AS build

WORKDIR /src
RUN python -m venv /opt/stagebus
# Every file that is fetched must have a known hash (`make lock`), setuptools included, which only builds the package.
COPY docker/requirements.txt docker/requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/stagebus/bin/pip install --disable-pip-version-check --require-hashes --no-deps --only-binary :all: \
    -r docker/requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY shared shared
COPY gateway gateway
COPY worker worker
COPY src src
RUN /opt/stagebus/bin/pip install --disable-pip-version-check --no-index --no-deps --no-build-isolation . \
    && /opt/stagebus/bin/pip uninstall --yes setuptools

FROM ${PYTHON_IMAGE}

ARG PYTHON_IMAGE
ARG VERSION=0.1.0
ARG REVISION=""
LABEL org.opencontainers.image.title="Stagebus" \
      org.opencontainers.image.description="Durable background runs of LLM toolchains, streamed to clients that can always resume" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}"

RUN useradd --system --uid 10001 --no-create-home stagebus
COPY --from=build /opt/stagebus /opt/stagebus
ENV PATH=/opt/stagebus/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

# Modules mounted here can be named in STAGEBUS_TOOLS.
WORKDIR /tools
USER stagebus
EXPOSE 8000
ENTRYPOINT ["stagebus"]
CMD ["--help"]
