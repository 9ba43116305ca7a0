# docker build -t astra-backup .
# docker run --rm --env-file .env -v "$PWD/backups:/backups" astra-backup                       # a backup
# docker run --rm --env-file .env -v "$PWD/backups:/backups" astra-backup restore.py --list     # another script
#
# Secrets come with `docker run` (variables, or files that the *_FILE variables name), never with `docker build`.

# By digest, since a tag can be moved; the digest covers every platform. The tag says what it is. To renew both:
# docker buildx imagetools inspect python:3.13-slim
FROM python:3.13.15-slim-trixie@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b AS base

FROM base AS build
COPY requirements.txt /build/
# Wheels only: nothing is compiled, so nothing but the pinned bytes can get in.
RUN python -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check \
      --require-hashes --only-binary :all: -r /build/requirements.txt

FROM base
LABEL org.opencontainers.image.title="astra-backup" \
      org.opencontainers.image.description="Back up and restore DataStax Astra DB collections" \
      org.opencontainers.image.version="1.0.0" \
      org.opencontainers.image.licenses="Apache-2.0"

COPY --from=build /opt/venv /opt/venv
# Snapshots have a directory of their own: a volume mounted there hides no script, and the rest of the image may be
# read-only (`docker run --read-only`), since TMPDIR, where a restore compares, is there too. As a VOLUME it gets this
# owner on platforms that copy it (Docker, Fargate). A directory of the host that is mounted there must be writable for
# user 10001.
RUN install --directory --owner 10001 --group 10001 --mode 0700 /backups
VOLUME ["/backups"]
WORKDIR /work
COPY LICENSE astra_backup.py restore.py snapshots.py ./

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    BACKUP_OUTPUT_DIR=/backups \
    TMPDIR=/backups

# A number, so that an orchestrator can see that it is not root.
USER 10001:10001

# It is a job: its exit code says how it is.
HEALTHCHECK NONE

# The exec form: Python is process 1 and gets SIGTERM itself.
ENTRYPOINT ["python"]
CMD ["astra_backup.py"]
