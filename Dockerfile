# HMNet on a CPU: docker build -t hmnet . && docker run --rm --shm-size 2g hmnet
FROM python:3.12-slim
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ make && rm -rf /var/lib/apt/lists/*
WORKDIR /hmnet
COPY . .
RUN PIP_NO_CACHE_DIR=1 make .venv/.installed EXTRAS=zoo,app && .venv/bin/pip install --no-cache-dir scikit-image
ENV PATH=/hmnet/.venv/bin:$PATH
CMD ["make", "demo"]
