FROM c AS build
ADD zlib_1.2.13.dfsg.orig.tar.bz2 /
WORKDIR /zlib-1.2.13.dfsg
RUN ./configure --prefix=/usr && make -j$(nproc) && make install DESTDIR=/out

FROM scratch
COPY --from=build /out /
CMD ["/none"]
