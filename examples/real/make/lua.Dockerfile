FROM c AS build
ADD lua5.4_5.4.4.orig.tar.gz /
WORKDIR /lua-5.4.4
RUN make -j$(nproc) posix && make install INSTALL_TOP=/out/usr

FROM scratch
COPY --from=build /out /
CMD ["/usr/bin/lua", "-v"]
