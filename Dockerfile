# gainmtl on the line: train, evaluate, predict, export, browse. See docs/remote.md; build the wheel first: make wheel
FROM python:3.11-slim

COPY constraints.txt dist/gainmtl-*.whl /tmp/install/
# mmengine pulls opencv-python, which needs a display library; the headless build goes over it.
RUN pip install --no-cache-dir --constraint /tmp/install/constraints.txt \
        "$(echo /tmp/install/gainmtl-*.whl)[export,mlflow]" \
    && pip install --no-cache-dir --constraint /tmp/install/constraints.txt --force-reinstall --no-deps \
        opencv-python-headless \
    && rm -r /tmp/install

# Any user may run it (docker run --user): caches go where everybody can write.
ENV HOME=/tmp
USER 1000
WORKDIR /work
# It is process 1, for which a SIGTERM without a handler is none: docker stop would wait ten seconds, then kill it. Ctrl-C
# it answers, and says what goes on.
STOPSIGNAL SIGINT
ENTRYPOINT ["gainmtl"]
CMD ["--help"]
