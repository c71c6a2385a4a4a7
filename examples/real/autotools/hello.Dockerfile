FROM c AS build
ADD hello_2.10.orig.tar.gz /
WORKDIR /hello-2.10
RUN ./configure --prefix=/usr && make -j$(nproc) && make install DESTDIR=/out

FROM scratch
COPY --from=build /out /
CMD ["/usr/bin/hello"]
