# The commands tc-clip-train and tc-clip in a container, for NVIDIA GPUs and for CPUs: INSTALL.md, "Containers".
#
#   docker build --tag tc-clip .
#
# CUDA's runtime comes with PyTorch's wheels, so the base needs none; the driver is that of the machine.

FROM python:3.12.11-slim-bookworm AS base
# torch.compile and Triton need a C compiler (trainer.compile=auto).
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 user && mkdir /workspace && chown user:user /workspace
# What NVIDIA's container toolkit passes into the container: video decodes on the GPU.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# For .devcontainer: the checkout is mounted, and its .venv is made there.
FROM base AS development
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git openssh-client chromium fonts-dejavu-core \
    && rm -rf /var/lib/apt/lists/*
USER user

FROM base AS runtime
WORKDIR /opt/tc-clip
# The packages first: a change of the code does not install them again.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > needed.txt \
    && pip install --constraint constraints.txt --requirement needed.txt
COPY setup.py README.md LICENSE NOTICE ./
COPY tc_clip tc_clip
COPY video_datasets video_datasets
COPY trainers trainers
COPY configs configs
COPY labels labels
RUN pip install --no-deps .
WORKDIR /workspace
USER user
CMD ["tc-clip-train", "--help"]
