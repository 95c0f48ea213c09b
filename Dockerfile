# exaifs in a container: mounts the bucket at /app/files, caches in the volume /var/cache/exaifs.
#
#   docker build -t exaifs .
#   docker run --device /dev/fuse --cap-add SYS_ADMIN -e SUPABASE_URL=... -e SUPABASE_SERVICE_ROLE_KEY=... exaifs
#
# Any other command works too: docker run ... exaifs doctor, docker run -i ... exaifs mcp

FROM debian:bookworm-slim AS build

# pyfuse3 is compiled here against libfuse; nothing of the tool chain reaches the second stage.
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        ca-certificates gcc libc6-dev libfuse3-dev pkg-config python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

RUN python3 -m venv /opt/exaifs
ENV PATH=/opt/exaifs/bin:$PATH
WORKDIR /src

# The dependencies first: this layer is built again only when they change. Those of `exaifs mcp` add 5 MiB to 56.
COPY pyproject.toml .ci/constraints.txt ./
RUN python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
print(*project["dependencies"], *project["optional-dependencies"]["mcp"], sep="\n")' >requirements.txt \
    && pip install --no-cache-dir --disable-pip-version-check -c constraints.txt -r requirements.txt

COPY README.md LICENSE ./
COPY exaifs exaifs
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps . \
    && pip uninstall -y --disable-pip-version-check pip setuptools


FROM debian:bookworm-slim

LABEL org.opencontainers.image.title="exaifs" \
      org.opencontainers.image.description="Mounts a Supabase Storage bucket as a directory" \
      org.opencontainers.image.licenses="MIT"

RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates fuse3 libmagic1 python3 tini \
    && rm -rf /var/lib/apt/lists/* \
    && mkdir -p /app/files \
    && install -d -m 0700 /var/cache/exaifs

COPY --from=build /opt/exaifs /opt/exaifs

# EXAIFS_ALLOW_OTHER: programs run as other users than root. Who may do what is up to the files' modes.
# EXAIFS_DRAIN_TIMEOUT_S: `docker stop` kills after 10 s, and a busy mount takes 2 more to end. What is not
# sent by then stays in the cache volume, and the next start sends it.
ENV PATH=/opt/exaifs/bin:$PATH \
    FILE_CACHE_DIR=/var/cache/exaifs \
    EXAIFS_ALLOW_OTHER=true \
    EXAIFS_DRAIN_TIMEOUT_S=6

# A library that is missing shows here, not on the first start.
RUN exaifs mount --help >/dev/null && python -c 'import exaifs.mcp.stdio, exaifs.mcp.http' && exaifs version

VOLUME /var/cache/exaifs
WORKDIR /app
STOPSIGNAL SIGTERM

# Is exaifs mounted there, and does its daemon answer? A list of names is always asked of the daemon; the
# attributes alone could come out of the kernel's cache. `find` runs beside the shell because a process
# that waits for a hanging daemon cannot be killed, and nobody must wait for it.
HEALTHCHECK --interval=15s --timeout=10s --start-period=30s --retries=2 CMD \
    awk '$5 == "/app/files" { line = $0 } END { exit line !~ / - fuse\.exaifs / }' /proc/self/mountinfo \
    && timeout -s KILL 5 sh -c 'find /app/files -mindepth 1 -maxdepth 1 -quit & wait $!'

ENTRYPOINT ["tini", "--", "exaifs"]
CMD ["mount", "/app/files"]
