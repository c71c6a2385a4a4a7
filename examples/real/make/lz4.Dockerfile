FROM c AS build
ADD lz4_1.9.4.orig.tar.gz /
WORKDIR /lz4-1.9.4
RUN make -j$(nproc) && make install PREFIX=/usr DESTDIR=/out

FROM scratch
COPY --from=build /out /
CMD ["/usr/bin/lz4", "--version"]
