# Not built so far: there was no container engine where it was written. The commands within are those of `make demo`.
#
#   docker build -t decode .                               the CPU
#   docker build -t decode --build-arg TORCH=cuda .        an NVIDIA GPU; run it with --gpus all
#   docker run --rm -v "$PWD:/data" decode localize movie.tif --model gaussian-2d --pixel-size 100 -o out
FROM python:3.12-slim

# cpu: the version of constraints.txt from PyTorch's index for CPUs; cuda: PyPI's build for Linux, which brings CUDA
ARG TORCH=cpu

WORKDIR /opt/decode
COPY pyproject.toml README.md CHANGELOG.md LICENSE constraints.txt ./
COPY decode decode
COPY napari_plugin napari_plugin
COPY sample_data sample_data
RUN if [ "$TORCH" = cpu ]; then \
      pip install --no-cache-dir -c constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu '.[io]'; \
    else \
      pip install --no-cache-dir '.[io]'; \
    fi \
 && decode --version

RUN useradd --create-home user
USER user
WORKDIR /data
ENTRYPOINT ["decode"]
CMD ["--help"]
