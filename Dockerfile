# Two targets: `docker build --target cpu .` and `docker build --target cuda .` (the default).
# Each pip call reads exactly one package index. The build argument TORCH_INDEX names the one that
# torch comes from; without it the usual index gives its usual build, which brings CUDA along.

FROM python:3.11.14-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
RUN ["python", "-m", "venv", "/opt/estuary"]
ENV PATH=/opt/estuary/bin:$PATH
WORKDIR /source
# The CPU kernels are compiled into the image, for every kind of x86 processor.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
COPY requirements.lock ./

FROM build AS build-cpu
ARG TORCH_INDEX=""
RUN env ${TORCH_INDEX:+PIP_INDEX_URL="$TORCH_INDEX"} pip install torch==2.13.0 \
    && pip install -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY kernels kernels
COPY weights weights
COPY sampler sampler
COPY server server
RUN pip install --no-deps --no-build-isolation . \
    && python -P -m kernels.cpu.build

FROM build AS build-cuda
ARG TORCH_INDEX=""
RUN env ${TORCH_INDEX:+PIP_INDEX_URL="$TORCH_INDEX"} pip install torch==2.13.0 \
    && pip install -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY kernels kernels
COPY weights weights
COPY sampler sampler
COPY server server
RUN pip install --no-deps --no-build-isolation . \
    && python -P -m kernels.cpu.build

# What both images share at run time: a user without rights, a cache volume, nothing else to write.
FROM python:3.11.14-slim-bookworm AS runtime
LABEL org.opencontainers.image.title="Estuary" \
      org.opencontainers.image.description="Inference server for language models that decode autoregressively, by diffusion, or both" \
      org.opencontainers.image.licenses="Apache-2.0"
# Group 0 may write what the user may, so that platforms that choose their own user id work.
RUN useradd --uid 10001 --gid 0 --no-create-home --home-dir /cache estuary \
    && mkdir -p /cache \
    && chown 10001:0 /cache \
    && chmod 2775 /cache
ENV PATH=/opt/estuary/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/cache \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton \
    ESTUARY_HOST=0.0.0.0 \
    ESTUARY_PORT=8000
VOLUME ["/cache"]
WORKDIR /cache
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-m", "server.shell.probe"]
ENTRYPOINT ["estuary"]
CMD ["serve"]

FROM runtime AS cpu
COPY --from=build-cpu /opt/estuary /opt/estuary
USER 10001:0

FROM runtime AS cuda
# Triton compiles its launchers with the C compiler the first time that it runs.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-cuda /opt/estuary /opt/estuary
USER 10001:0
