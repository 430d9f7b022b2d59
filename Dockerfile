# ThinkJEPA with the pinned versions. TORCH_BACKEND chooses the build of torch:
#
#   docker build -t thinkjepa .                                             for CPUs
#   docker build -t thinkjepa:gpu --build-arg TORCH_BACKEND=cu130 .         for GPUs, CUDA 13.0
#
# Videos, caches and runs are mounted at /data, downloaded models are kept in /models. Decoded frames travel through
# shared memory, which a container has little of unless it is told:
#
#   docker run --rm -it --gpus all --ipc host -v DIR:/data -v MODELS:/models thinkjepa:gpu \
#       thinkjepa-cache extract --videos videos --cache-dir CACHE --device cuda
ARG PYTHON=3.11
FROM python:${PYTHON}-slim
ARG TORCH_BACKEND=cpu

# git: projects made by thinkjepa-init, and DVC's experiments.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir uv

WORKDIR /opt/thinkjepa
COPY pyproject.toml setup.py README.md LICENSE constraints.txt ./
COPY package package
COPY cache cache
COPY stages stages
COPY pipeline pipeline
RUN uv pip install --system --no-cache --torch-backend ${TORCH_BACKEND} --constraint constraints.txt .

ENV HF_HOME=/models
RUN useradd --create-home thinkjepa && mkdir /data /models && chown thinkjepa /data /models
USER thinkjepa
WORKDIR /data
CMD ["thinkjepa-cache", "doctor"]
