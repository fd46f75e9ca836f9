# One image for the starter, the worker, the migrations and the set-up of Temporal; the command says which.
FROM python:3.13.15-slim-trixie AS build
WORKDIR /app
# The environment has no pip of its own; the one of the image fills it, with nothing that has no known hash.
COPY requirements/runtime.txt requirements/runtime.txt
RUN python -m venv --without-pip /opt/venv \
 && python -m pip --python /opt/venv/bin/python --no-cache-dir --disable-pip-version-check \
        install --require-hashes --only-binary :all: --requirement requirements/runtime.txt
# .dockerignore names what there is to copy. Compiled here: a read-only file system cannot keep it later.
COPY . .
RUN python -m compileall -q --invalidation-mode unchecked-hash . \
 && printf '%s\n' '#!/opt/venv/bin/python' 'import sys' 'from cli.main import main' 'sys.exit(main())' > /opt/venv/bin/referrals \
 && chmod 755 /opt/venv/bin/referrals

FROM python:3.13.15-slim-trixie
RUN groupadd --gid 10001 referrals \
 && useradd --uid 10001 --gid 10001 --no-create-home --no-log-init --shell /usr/sbin/nologin referrals \
 && python -m pip uninstall --yes --quiet --root-user-action ignore pip
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
USER 10001:10001
EXPOSE 8000
CMD ["python", "-m", "starter"]
