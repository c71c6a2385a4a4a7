FROM c AS build
ADD redis_7.0.15.orig.tar.gz /
WORKDIR /redis-7.0.15
RUN make -j$(nproc) MALLOC=libc V=1 && make install PREFIX=/out/usr

FROM scratch
COPY --from=build /out /
CMD ["/usr/bin/redis-server", "--version"]
