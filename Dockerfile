# A node. Settings come from the environment (BLOCKRAFT_CLUSTER__ID=…) or from a mounted file
# (BLOCKRAFT_CONFIG=/etc/blockraft/node.toml). The data folder is the mount point below: a volume at another
# path, or one level deeper, belongs to root, and the node cannot write there.

FROM rust:1.95-bookworm AS build
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends cmake libclang-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# RocksDB before the sources: a layer that is built once, whatever changes in src/.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
COPY scripts scripts
COPY patches patches
RUN mkdir src && touch src/lib.rs && echo 'fn main() {}' >src/main.rs && scripts/rocksdb.sh && rm -r src
COPY . .
RUN scripts/cargo.sh build --release --locked --bin blockraft \
    && install -m 755 -s target/release/blockraft /usr/local/bin/blockraft

FROM debian:bookworm-slim
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends libstdc++6 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 blockraft \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/blockraft --shell /usr/sbin/nologin blockraft \
    && install -d -o blockraft -g blockraft -m 0700 /var/lib/blockraft
COPY --from=build /usr/local/bin/blockraft /usr/local/bin/blockraft
USER blockraft
ENV BLOCKRAFT_NODE__DATA_DIR=/var/lib/blockraft
VOLUME /var/lib/blockraft
# API and peers.
EXPOSE 7400 7500
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=2s --timeout=2s --start-period=30s --retries=5 CMD ["blockraft", "ctl", "--timeout", "1s", "live"]
ENTRYPOINT ["blockraft"]
CMD ["node"]
