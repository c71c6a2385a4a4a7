FROM c AS build
ADD sqlite3_3.40.1.orig.tar.xz /
WORKDIR /sqlite3-3.40.1
RUN ./configure --prefix=/usr --disable-tcl --disable-readline && make -j$(nproc) sqlite3 && \
    install -D -m 0755 sqlite3 /out/usr/bin/sqlite3

FROM scratch
COPY --from=build /out /
CMD ["/usr/bin/sqlite3", "--version"]
