FROM go AS build
RUN GO111MODULE=off GOCACHE=/tmp/cache go build -trimpath -o /out/usr/bin/gofmt cmd/gofmt

FROM scratch
COPY --from=build /out /
CMD ["/usr/bin/gofmt"]
