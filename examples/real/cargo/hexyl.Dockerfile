FROM rust AS build
RUN cp -r /usr/share/cargo/registry/hexyl-0.8.0 /hexyl
WORKDIR /hexyl
# Debian's packages of crates are the registry: nothing comes from the network.
COPY <<CONFIG .cargo/config.toml
[source.crates-io]
replace-with = "debian"
[source.debian]
directory = "/usr/share/cargo/registry"
CONFIG
RUN CARGO_HOME=/tmp/cargo cargo build --release --offline && \
    install -D -m 0755 target/release/hexyl /out/usr/bin/hexyl

FROM scratch
COPY --from=build /out /
CMD ["/usr/bin/hexyl", "--version"]
