FROM go AS build
RUN GO111MODULE=off GOPATH=/usr/share/gocode GOCACHE=/tmp/cache CGO_ENABLED=0 \
    go build -trimpath -o /out/usr/bin/tomlv github.com/BurntSushi/toml/cmd/tomlv

FROM scratch
COPY --from=build /out /
CMD ["/usr/bin/tomlv"]
