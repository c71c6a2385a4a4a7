FROM meson AS build
ADD fribidi_1.0.8.orig.tar.bz2 /
RUN meson setup /build /fribidi-1.0.8 --prefix=/usr -Ddocs=false && ninja -C /build && \
    DESTDIR=/out ninja -C /build install

FROM scratch
COPY --from=build /out /
CMD ["/usr/bin/fribidi", "--version"]
