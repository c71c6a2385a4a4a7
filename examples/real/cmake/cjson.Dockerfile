FROM cmake AS build
ADD cjson_1.7.15.orig.tar.gz /
RUN cmake -S /cJSON-1.7.15 -B /build -DCMAKE_INSTALL_PREFIX=/usr -DENABLE_CJSON_TEST=Off && \
    cmake --build /build -j$(nproc) && DESTDIR=/out cmake --install /build

FROM scratch
COPY --from=build /out /
CMD ["/none"]
