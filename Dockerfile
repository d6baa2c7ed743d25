# One image for all processes; the command selects one: `gateway`, `worker` or `demo-model`.
FROM python:3.11.14-slim-bookworm AS build

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

FROM python:3.11.14-slim-bookworm

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
