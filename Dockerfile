# One image for all processes; the command selects one: `gateway`, `worker` or `demo-model`.
FROM python:3.11.14-slim-bookworm AS build

WORKDIR /src
RUN python -m venv /opt/stagebus
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY shared shared
COPY gateway gateway
COPY worker worker
COPY src src
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/stagebus/bin/pip install --disable-pip-version-check --only-binary :all: -c constraints.txt '.[server,mcp]'

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
