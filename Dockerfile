# metarun with a CPU build of torch:  docker build -t metarun .
# with pip's own, on Linux for CUDA:  docker build -t metarun-cuda --build-arg TORCH_INDEX= .
# docs/install.md has the commands that run it.
FROM python:3.11-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# The compiler is torch.compile's (device.compile).
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/metarun
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch torchvision
COPY pyproject.toml README.md LICENSE ./
COPY metarun metarun
COPY conf conf
RUN pip install --no-cache-dir -c constraints.txt .

# Runs, downloaded data and compiled code stand in folders that the command mounts.
ENV METARUN_CACHE=/runs/.cache
WORKDIR /runs
ENTRYPOINT ["metarun"]
