# The quickstart and the tests, without a GPU. Linted with hadolint. Not built by an engine, there is none here: each of its
# steps was run by hand on 2026-11-26, in a root of Debian 12 made with debootstrap (its Python 3.11 is /usr/bin/python3, the
# image's is under /usr/local; torch's CPU wheel came from a folder, download.pytorch.org cannot be reached), and then,
# as its user, `make quickstart` (the README's figures to the digit), `prefix-rl check` and four files of tests.
#   docker build -f docker/cpu.Dockerfile -t prefix_rl:cpu .
#   docker run prefix_rl:cpu                # make quickstart
#   docker run prefix_rl:cpu make test
#   docker run prefix_rl:cpu prefix-rl check recipes/lab/dr_grpo.yaml
FROM python:3.11-slim

# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends git g++ make && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 trainer && mkdir -p /work /cache && chown trainer /work /cache

WORKDIR /work
USER 1000
COPY --chown=trainer . .
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu PIP_NO_CACHE_DIR=1 PREFIX_RL_CACHE=/cache
RUN make install
ENV PATH=/work/.venv/bin:$PATH
VOLUME /cache
CMD ["make", "quickstart"]
