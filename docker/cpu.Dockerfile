# The quickstart and the tests, without a GPU. Linted with hadolint; not built here, where there is no container engine.
#   docker build -f docker/cpu.Dockerfile -t prefix_rl:cpu .
#   docker run prefix_rl:cpu                # make quickstart
#   docker run prefix_rl:cpu make test
FROM python:3.11-slim

# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends git g++ make && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 trainer && mkdir -p /work /cache && chown trainer /work /cache

WORKDIR /work
USER 1000
COPY --chown=trainer . .
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu PIP_NO_CACHE_DIR=1 PREFIX_RL_CACHE=/cache
RUN make install
VOLUME /cache
CMD ["make", "quickstart"]
