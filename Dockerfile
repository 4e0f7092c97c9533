# `specrej serve` in a container, as a user without rights, with the models in a volume. docs/server.md says how to run it.
#
#   docker build --tag specrej .
#   docker build --tag specrej --build-arg TORCH_INDEX=... .     # the index of CPU builds that PyTorch's site names
#   docker build --tag specrej --build-arg EXTRAS=server,gguf,onnx,http .
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
# From pip's own index torch comes for CUDA on x86-64, which also runs on a CPU but is several times as large.
ARG TORCH="torch>=2.6"
ARG TORCH_INDEX=""
ARG EXTRAS="server,gguf,onnx"
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/specrej
ENV PATH=/opt/specrej/bin:$PATH
# Before the sources: a layer of this size is to be made again only when torch changes.
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH"
COPY pyproject.toml README.md LICENSE /source/
COPY src /source/src
RUN pip install "/source[$EXTRAS]"

FROM python:${PYTHON}-slim
RUN useradd --system --uid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin specrej \
 && install --directory --owner specrej --group specrej --mode 700 /var/cache/specrej
COPY --from=build /opt/specrej /opt/specrej
ENV PATH=/opt/specrej/bin:$PATH \
    SPECREJ_CACHE=/var/cache/specrej \
    HF_HOME=/var/cache/specrej/huggingface \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /var/cache/specrej
VOLUME /var/cache/specrej
EXPOSE 8000
# The first start fetches the models, and says nothing until they are open.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# API keys come from the environment: SPECREJ_API_KEYS. What follows the image's name are further options of `serve`.
ENTRYPOINT ["specrej", "serve", "--host", "0.0.0.0", "--port", "8000"]
