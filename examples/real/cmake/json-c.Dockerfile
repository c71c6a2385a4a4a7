FROM cmake AS build
ADD json-c_0.16.orig.tar.gz /
RUN cmake -S /json-c-json-c-0.16-20220414 -B /build -DCMAKE_BUILD_TYPE=Release \
        -DCMAKE_INSTALL_PREFIX=/usr && \
    cmake --build /build -j$(nproc) && DESTDIR=/out cmake --install /build

FROM scratch
COPY --from=build /out /
CMD ["/none"]
