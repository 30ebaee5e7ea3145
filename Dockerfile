# syntax=docker/dockerfile:1

# The API, the processes that render rows for it, and housekeeping: no torch.
FROM python:3.11-slim AS service
RUN apt-get update && apt-get install --yes --no-install-recommends curl && rm -rf /var/lib/apt/lists/*
WORKDIR /burnish
COPY pyproject.toml README.md LICENSE ./
COPY requirements requirements
COPY app app
COPY worker worker
RUN pip install --no-cache-dir --constraint requirements/constraints.txt '.[render]'
ENTRYPOINT ["burnish"]

# Training: torch for the GPU, PEFT, transformers.
FROM service AS worker
RUN pip install --no-cache-dir --constraint requirements/constraints.txt '.[train]'

# The engine controller beside vLLM's own environment, which it starts engines in.
FROM vllm/vllm-openai:v0.32.0 AS engine
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/*
WORKDIR /burnish
COPY --from=service /burnish /burnish
RUN python3 -m venv /opt/burnish && \
    /opt/burnish/bin/pip install --no-cache-dir --constraint requirements/constraints.txt .
ENTRYPOINT ["/opt/burnish/bin/burnish"]
