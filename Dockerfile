# The producer. The build stage is the same as in Dockerfile.worker, line for line, so one build serves
# all images. The processes share the features of their dependencies, and each is compiled once.
ARG RUST_VERSION=1.95
ARG DEBIAN_NAME=bookworm
ARG DEBIAN_VERSION=12

FROM rust:${RUST_VERSION}-${DEBIAN_NAME} AS build
WORKDIR /src
COPY . .
# All checkouts on a machine share the cached target directory, and cargo compares time stamps. Our own
# sources are touched, so they are always compiled; the dependencies are not.
RUN --mount=type=cache,id=slipstream-registry,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,id=slipstream-target,target=/src/target,sharing=locked \
    find crates -name '*.rs' -exec touch {} + \
 && cargo build --release --locked -p producer -p consumer -p poller \
 && mkdir /out && cd target/release && cp producer consumer poller /out/

FROM gcr.io/distroless/cc-debian${DEBIAN_VERSION}:nonroot
LABEL org.opencontainers.image.title="Slipstream producer" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/producer /usr/local/bin/
USER 65532:65532
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["producer", "healthcheck"]
ENTRYPOINT ["producer"]
